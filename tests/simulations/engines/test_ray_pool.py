import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace

import pytest
import tiny
import torch

from clients.supervised import Supervised
from fedkd.engine import Failure, Reply
from fedkd.payload import Payload
from simulations.engines import ray_dispatch
from simulations.engines.inline import Inline

ray = pytest.importorskip("ray")

SIZES = (20, 12, 7, 9, 16, 5, 8, 11)
FINE, RAISES, SLEEPS, DIES, MUTE, DIES_ONCE = 0, 1, 2, 3, 4, 5


class Wild(Supervised):
    """Trains, after doing what the client's number in `deeds` says."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Supervised.Config):
        deeds: tuple[int, ...] = (FINE,) * len(SIZES)
        seconds: float = 0.0
        mark: str = ""

    def train(self, site, job):
        outcome = super().train(site, job)
        deed = self.config.deeds[job.client]
        if deed == RAISES:
            raise ValueError("no more disk")
        if deed == SLEEPS:
            time.sleep(self.config.seconds)
        if deed == DIES or (deed == DIES_ONCE and is_first(self.config.mark)):
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == MUTE:
            return replace(outcome, payload=Payload(numbers={"lock": threading.Lock()}))
        return outcome

    def next_memory(self, trained, job):
        """Nested, and it grows from round to round."""
        past = trained.memory.get("past", {"count": 0, "head": torch.zeros(())})
        head = past["head"] + trained.student.weights["head.bias"].sum()
        return {"past": {"count": past["count"] + 1, "head": head, "words": "as text"}}


def is_first(mark):
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def wild_site(problem, **config):
    return tiny.site(Wild(Wild.Config(**config)), problem, SIZES)


def deeds(**by_name):
    """The deeds of all clients: client=deed, e.g. c3=RAISES."""
    return tuple(by_name.get(f"c{client}", FINE) for client in range(len(SIZES)))


def cohort(problem, states=None, **changes):
    first = tiny.job(problem, **changes)
    return [replace(first, client=k, **({"state": states[k]} if states else {})) for k in range(len(SIZES))]


def run(engine, jobs, **kwargs):
    results = list(engine.run(jobs, **kwargs))
    assert len(results) == len(jobs), "one result for every job"
    return {result.client: result for result in results}


def rounds(engine, problem):
    """Two rounds of training, states handed on, and an evaluation, without what depends on the clock."""
    first = run(engine, cohort(problem))
    states = {client: reply.state for client, reply in first.items()}
    second = run(engine, cohort(problem, states, round=2))
    weights = second[0].payload
    tests = run(engine, cohort(problem, {k: reply.state for k, reply in second.items()}, task="evaluate", round=2))
    pooled = list(engine.run([tiny.job(problem, task="evaluate_pooled", payload=weights)]))
    return [{k: tiny.lasting(v) for k, v in sorted(part.items())} for part in (first, second, tests)] + [
        tiny.lasting(pooled[0])
    ]


def wait_for_all(pool, problem, rounds=3):
    """Until both workers are there and warm: a replacement needs seconds, and rounds go on without it."""
    while len(pool.pids) < 2:
        run(pool, cohort(problem, task="evaluate"))
        time.sleep(0.1)
    for _ in range(rounds):
        run(pool, cohort(problem)[1:])


@pytest.fixture
def pool(two_workers):
    """Two workers at a site where all is well; a test may serve another."""
    for module in (sys.modules[__name__], tiny):  # workers cannot import test modules: they are sent
        ray.cloudpickle.register_pickle_by_value(module)
    list(two_workers.run([]))
    two_workers.serve(wild_site(tiny.problem()))
    return two_workers


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_results_are_the_bytes_of_the_inline_engine(pool, make):
    problem = tiny.problem(make)
    site = wild_site(problem)
    pool.serve(site)
    assert rounds(pool, problem) == rounds(Inline(site), problem)


def test_a_probe_comes_back_with_its_type(pool, problem):
    site = replace(wild_site(problem), probe=torch.rand(5, 1, tiny.SIDE, tiny.SIDE))
    pool.serve(site)
    reply = run(pool, cohort(problem))[3]
    assert reply.probe.dtype == torch.uint8
    assert torch.equal(reply.probe, site.run(cohort(problem)[3]).probe)


def test_an_exception_is_a_failure_with_client_and_traceback(pool, problem):
    pool.serve(wild_site(problem, deeds=deeds(c4=RAISES)))
    results = run(pool, cohort(problem, round=3))
    failure = results.pop(4)
    assert isinstance(failure, Failure)
    assert (failure.client, failure.round, failure.cause, failure.what) == (4, 3, "raised", "ValueError: no more disk")
    assert 'raise ValueError("no more disk")' in failure.detail
    assert all(isinstance(result, Reply) for result in results.values())


def test_an_answer_that_cannot_travel_fails_its_client_alone(pool, problem):
    pool.serve(wild_site(problem, deeds=deeds(c2=MUTE)))
    run(pool, cohort(problem))  # now the cost is known, and client 2 travels in a chunk with others
    results = run(pool, cohort(problem))
    assert results[2].cause == "raised"
    assert "pickle" in results[2].detail
    assert [k for k, result in results.items() if isinstance(result, Failure)] == [2]


def test_a_killed_worker_is_replaced_and_its_clients_run_again_to_the_same_bytes(pool, problem):
    pool.serve(wild_site(problem, deeds=(SLEEPS,) * len(SIZES), seconds=0.2))
    wait_for_all(pool, problem, rounds=1)
    expected = {k: tiny.lasting(v) for k, v in run(Inline(wild_site(problem)), cohort(problem)).items()}
    before = pool.facts()["replaced"]
    results = pool.run(cohort(problem))
    found = [next(results)]  # in mid-round: every worker runs a job, or is to get its next one
    os.kill(pool.pids[0], signal.SIGKILL)
    found += list(results)
    assert {reply.client: tiny.lasting(reply) for reply in found} == expected
    assert pool.facts()["replaced"] == before + 1
    assert pool.facts()["workers"] == 2


def test_a_worker_that_dies_once_costs_nobody_a_reply(pool, problem, tmp_path):
    pool.serve(wild_site(problem, deeds=deeds(c5=DIES_ONCE), mark=str(tmp_path / "mark")))
    found = {k: tiny.lasting(v) for k, v in run(pool, cohort(problem)).items()}
    assert (tmp_path / "mark").exists()
    assert found == {k: tiny.lasting(v) for k, v in run(Inline(wild_site(problem)), cohort(problem)).items()}


def test_a_client_that_kills_every_worker_is_lost_and_the_others_are_not(pool, problem):
    pool.serve(wild_site(problem, deeds=deeds(c1=DIES)))
    results = run(pool, cohort(problem))
    assert {k: result.cause for k, result in results.items() if isinstance(result, Failure)} == {1: "lost"}


def test_at_the_deadline_the_unanswered_are_late_and_their_answers_are_never_taken_for_later_ones(pool, problem):
    pool.serve(wild_site(problem, deeds=deeds(c0=SLEEPS), seconds=2.0))
    wait_for_all(pool, problem)
    pids = pool.pids
    results = run(pool, cohort(problem, round=1), deadline=1.5)
    late = [k for k, result in results.items() if isinstance(result, Failure) and result.cause == "late"]
    assert 0 in late
    assert len(late) < 4, "it may take along those whose turn at its worker was next, and nobody else"
    again = run(pool, cohort(problem, round=2)[1:4])
    assert [(k, again[k].round) for k in sorted(again)] == [(1, 2), (2, 2), (3, 2)]
    time.sleep(1.5)  # until client 0's answer to round 1 lies there
    assert {(reply.client, reply.round) for reply in run(pool, cohort(problem, round=3)[1:4]).values()} == {
        (1, 3),
        (2, 3),
        (3, 3),
    }
    assert set(pool.pids) == set(pids), "a worker that is only slow is not replaced"


def test_a_worker_that_is_stuck_is_replaced(pool, problem, monkeypatch):
    monkeypatch.setattr(ray_dispatch, "GRACE_SECONDS", 0.2)
    pool.serve(wild_site(problem, deeds=deeds(c0=SLEEPS), seconds=600))
    wait_for_all(pool, problem)
    before = pool.facts()["replaced"]
    assert run(pool, cohort(problem), deadline=0.5)[0].cause == "late"
    time.sleep(0.6)  # more than the deadline and the grace
    run(pool, cohort(problem, task="evaluate"))
    assert pool.facts()["replaced"] == before + 1


def test_nobody_waits_behind_a_long_job_while_another_worker_is_idle(pool, problem):
    pool.serve(wild_site(problem, deeds=(SLEEPS,) * len(SIZES), seconds=0.3))
    wait_for_all(pool, problem, rounds=1)
    start = time.monotonic()
    run(pool, cohort(problem)[:6])
    assert time.monotonic() - start < 6 * 0.3, "at least one job was done beside another"
    homes = [pool._affinity[False, k] for k in range(6)]
    assert sorted(map(homes.count, set(homes))) == [3, 3]


def test_an_idle_worker_steals(pool, problem):
    pool.serve(wild_site(problem, deeds=(SLEEPS,) * len(SIZES), seconds=0.05))
    wait_for_all(pool, problem)
    pool._affinity.update({(False, client): pool._workers.slots[0].number for client in range(len(SIZES))})
    before = pool.facts()["stolen"]
    run(pool, cohort(problem))
    assert pool.facts()["stolen"] > before


def test_clients_stay_with_their_worker(pool, problem):
    pool.serve(wild_site(problem, deeds=(SLEEPS,) * len(SIZES), seconds=0.02))
    wait_for_all(pool, problem)
    run(pool, cohort(problem))
    homes = dict(pool._affinity)
    before = pool.facts()["stolen"]
    run(pool, cohort(problem))
    moved = sum(homes[key] != home for key, home in pool._affinity.items())
    assert moved == pool.facts()["stolen"] - before <= 2


def test_equal_payloads_are_stored_once_a_round(pool, problem, monkeypatch):
    run(pool, cohort(problem))
    puts = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    jobs = cohort(problem)
    other = Payload(weights=jobs[0].payload.weights)
    run(pool, jobs[:4] + [replace(job, payload=other) for job in jobs[4:]])
    assert len(puts) == 2


def test_clients_with_a_payload_each_get_their_own(pool, problem):
    jobs = [replace(job, payload=Payload(weights=_scaled(job, 1 + job.client))) for job in cohort(problem)]
    found = {k: tiny.lasting(v) for k, v in run(pool, jobs).items()}
    assert found == {k: tiny.lasting(v) for k, v in run(Inline(wild_site(problem)), jobs).items()}


def test_a_round_that_is_left_early_does_not_disturb_the_next(pool, problem):
    pool.serve(wild_site(problem, deeds=(SLEEPS,) * len(SIZES), seconds=0.1))
    wait_for_all(pool, problem, rounds=1)
    results = pool.run(cohort(problem, round=1))
    next(results)
    results.close()
    time.sleep(0.5)  # until what was under way has answered
    assert {reply.round for reply in run(pool, cohort(problem, round=2)).values()} == {2}


def _scaled(job, factor):
    return {name: value * factor for name, value in job.payload.weights.items()}
