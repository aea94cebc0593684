"""The loop: a round is a transaction, whatever clients do. Exchanges and evaluation have files of their own."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from clients.supervised import Supervised
from fedkd import rounds
from fedkd.config import RunConfig
from fedkd.engine import ClientState, Failure, Job, failed
from fedkd.errors import RunError
from fedkd.payload import Payload
from strategies.fedavg import FedAvg

# A round is a transaction


def test_a_round_changes_nothing_it_was_given(experiment, engine):
    state = tiny.play(experiment, engine)[0].state
    before = tiny.canonical(state)
    rounds.run_round(experiment, engine, state)
    tiny.assert_same(tiny.canonical(state), before)


def test_the_same_round_played_again_gives_the_same_bytes(experiment, engine):
    state = tiny.play(experiment, engine)[0].state
    one, other = (rounds.run_round(experiment, engine, state) for _ in range(2))
    assert tiny.as_bytes(one) == tiny.as_bytes(other)
    tiny.assert_same(tiny.canonical(one.state), tiny.canonical(other.state))


@pytest.mark.parametrize("order", [lambda r: r[::-1], lambda r: [*r[1:], r[0]]])
def test_the_order_of_replies_changes_no_byte(experiment, site, order):
    one = tiny.play(experiment, tiny.FakeEngine(site), count=3)
    other = tiny.play(experiment, tiny.FakeEngine(site, order=order), count=3)
    assert [tiny.as_bytes(played) for played in one] == [tiny.as_bytes(played) for played in other]
    tiny.assert_same(tiny.canonical(one[-1].state), tiny.canonical(other[-1].state))


def test_too_few_usable_replies_end_the_run_and_leave_the_state_alone(site):
    experiment = tiny.experiment(FedAvg(), site, quorum=2)
    state = tiny.play(experiment, tiny.FakeEngine(site))[0].state
    before = tiny.canonical(state)

    def spoil(job: Job, result: Any) -> Any:
        if job.client == 0:
            return failed(job, "out of memory", "raised")
        if job.client == 1:
            return replace(result, num_examples=-3)
        return result

    with pytest.raises(RunError) as caught:
        rounds.run_round(experiment, tiny.FakeEngine(site, spoil=spoil), state)
    tiny.assert_same(tiny.canonical(state), before)
    assert "round 2: only 1 of 3 clients replied usefully, quorum is 2" in str(caught.value)
    assert "(1 failed, 1 rejected: client 0: out of memory" in str(caught.value)
    assert "state of round 1 is safe" in str(caught.value)
    assert [(f.client, f.cause) for f in caught.value.failures] == [(0, "raised"), (1, "range")]
    assert caught.value.code == 4


def test_as_many_replies_as_the_quorum_are_enough(site):
    experiment = tiny.experiment(FedAvg(), site, quorum=2)
    engine = tiny.FakeEngine(site, spoil=lambda job, r: failed(job, "gone", "lost") if job.client == 0 else r)
    assert tiny.play(experiment, engine)[0].row["clients"]["ok"] == 2


# Clients that fail or lie


def poisoned(job: Job, result: Any) -> Any:
    weights = {name: torch.full_like(value, math.nan) for name, value in result.payload.weights.items()}
    return replace(result, payload=Payload(weights=weights))


def transposed(job: Job, result: Any) -> Any:
    return replace(result, payload=Payload(weights={n: v[:1] for n, v in result.payload.weights.items()}))


MISDEEDS = {
    "raised": ("failed", lambda job, result: failed(job, "ValueError: no", "raised")),
    "late": ("late", lambda job, result: failed(job, "too late", "late")),
    "lost": ("failed", lambda job, result: failed(job, "no worker", "lost")),
    "non_finite": ("rejected", poisoned),
    "shape": ("rejected", transposed),
    "kinds": ("rejected", lambda job, result: replace(result, payload=Payload())),
    "stale": ("rejected", lambda job, result: replace(result, round=job.round + 1)),
    "range": ("rejected", lambda job, result: replace(result, num_examples=10**12)),
    "unreadable": ("rejected", lambda job, result: replace(result, payload=7)),
}


@pytest.mark.parametrize("cause", MISDEEDS)
def test_the_round_goes_on_without_a_client_and_its_row_says_why(experiment, site, cause):
    state, misdeed = MISDEEDS[cause]
    engine = tiny.FakeEngine(site)
    engine.spoil = lambda job, r: misdeed(job, r) if job.client == 1 and job.task == "train" else r
    played = tiny.play(experiment, engine)[0]
    row = played.clients[1]
    assert (row["state"], row["cause"], row["bytes_up"]) == (state, cause, 0)
    assert row["reason"]
    assert played.row["clients"] == {"ok": 2, "failed": 0, "late": 0, "rejected": 0} | {state: 1}
    assert played.row["cohort"] == [0, 1, 2]
    assert [(failure.client, failure.cause) for failure in played.failures] == [(1, cause)]
    assert set(played.state.clients) == {0, 2}
    assert all(torch.isfinite(entry).all() for entry in played.state.server.weights.values())


def test_a_client_that_fails_changes_the_others_in_no_bit(site):
    """The round is as it would have been without it, but for its own row."""
    spoiled = tiny.FakeEngine(site, spoil=lambda job, r: failed(job, "gone", "lost") if job.client == 1 else r)
    played = tiny.play(tiny.experiment(FedAvg(), site), spoiled)[0]

    class Without(FedAvg):
        def plan(self, state, cohort):
            return {client: payload for client, payload in super().plan(state, cohort).items() if client != 1}

    absent = tiny.play(tiny.experiment(Without(), site), tiny.FakeEngine(site))[0]
    tiny.assert_same(tiny.canonical(played.state), tiny.canonical(absent.state))


def test_a_client_that_claims_to_be_another_is_lost_and_harms_nobody(experiment, site):
    """The honest reply comes first here; that an engine knows whom it asked is the engine's own business."""
    engine = tiny.FakeEngine(site, spoil=lambda job, r: replace(r, client=0) if job.client == 2 else r)
    played = tiny.play(experiment, engine)[0]
    assert [row["state"] for row in played.clients] == ["ok", "ok", "failed"]
    assert played.clients[0]["examples"] == 20


def test_a_client_that_claims_to_be_a_stranger_is_lost_and_stops_nobody(experiment, site):
    engine = tiny.FakeEngine(site, spoil=lambda job, r: replace(r, client=99) if job.client == 2 else r)
    played = tiny.play(experiment, engine)[0]
    assert [row["cause"] for row in played.clients if row["state"] != "ok"] == ["lost"]
    assert played.row["accuracy"]["clients"]


def test_a_client_without_data_is_a_failure_and_the_round_goes_on(problem):
    site = tiny.site(Supervised(), problem, sizes=(8, 0, 1))
    played = tiny.play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0]
    assert [row["state"] for row in played.clients] == ["ok", "failed", "ok"]
    assert played.clients[1]["cause"] == "no_data"


# Rows


def test_bytes_are_counted_by_kind_and_direction(experiment, engine):
    played = tiny.play(experiment, engine)[0]
    entries = sum(value.numel() for value in experiment.problem.initial().weights.values())
    assert played.row["bytes"] == {"down": {"weights": 3 * 4 * entries}, "up": {"weights": 3 * 4 * entries}}
    assert {row["bytes_up"] for row in played.clients} == {4 * entries}


def test_who_watches_a_round_is_told_of_each_phase_and_each_job(experiment, engine):
    seen = []
    rounds.run_round(experiment, engine, rounds.begin(experiment), lambda *doing: seen.append(doing))
    clients = [("clients", done, 3) for done in range(4)]
    assert seen[:5] == [*clients, ("server", 0, 0)]
    assert {phase for phase, *_ in seen[5:]} == {"evaluation"}
    assert seen[-1][1] == seen[-1][2] == len(seen[5:]) - 1


def test_the_row_of_a_round_holds_terms_drift_and_accuracy(experiment, engine):
    played = tiny.play(experiment, engine)[0]
    row = played.row
    assert (row["round"], row["cohort"]) == (1, [0, 1, 2])
    assert row["terms"]["ce"] == pytest.approx(sum(r["numbers"]["ce"] for r in played.clients) / 3)
    assert row["server"] == {"effective_senders": pytest.approx(2.66, abs=0.2)}
    assert row["drift"]["weights"] > 0
    assert -1 <= row["drift"]["cosine"] <= 1
    assert 0 <= row["accuracy"]["global"] <= 1
    assert [r["examples"] for r in played.clients] == [20, 12, 7]
    assert tiny.as_bytes(played)


def test_function_drift_is_measured_where_there_is_a_probe(site):
    probed = replace(site, probe=site.test.take(torch.arange(6))[0])
    experiment = replace(tiny.experiment(FedAvg(), probed), probe_labels=site.test.y[:6])
    assert 0 <= tiny.play(experiment, tiny.FakeEngine(probed))[0].row["drift"]["function"] <= 1
    assert "function" not in tiny.play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0].row["drift"]


def test_timings_stay_out_of_the_rows(experiment, engine):
    played = tiny.play(experiment, engine)[0]
    assert set(played.timings) == {"clients", "server", "evaluation", "busy", "total"}
    assert "seconds" not in tiny.as_bytes(played)


# Cohorts


def test_cohorts_are_ascending_distinct_and_the_same_for_all_strategies():
    config = RunConfig(clients=20, clients_per_round=5)
    cohorts = [rounds.draw_cohort(config, t) for t in range(1, 30)]
    assert cohorts == [rounds.draw_cohort(replace(config, strategy={"name": "x"}), t) for t in range(1, 30)]
    assert all(list(cohort) == sorted(set(cohort)) and len(cohort) == 5 for cohort in cohorts)
    assert len(set(cohorts)) > 20
    assert set().union(*cohorts) == set(range(20))
    assert rounds.draw_cohort(replace(config, seed=1), 1) != cohorts[0]


def test_without_a_size_all_clients_take_part():
    assert rounds.draw_cohort(RunConfig(clients=4), 3) == (0, 1, 2, 3)


def test_only_the_cohort_trains_but_all_are_evaluated(site):
    experiment = tiny.experiment(FedAvg(), site, clients_per_round=1)
    played = tiny.play(experiment, tiny.FakeEngine(site))[0]
    (chosen,) = played.row["cohort"]
    assert set(played.state.clients) == {chosen}
    assert [row["state"] for row in played.clients] == ["ok" if k == chosen else "idle" for k in range(3)]
    assert all("accuracy" in row for row in played.clients)


# Going on


def test_learning_goes_on_over_the_rounds(experiment, engine):
    played = tiny.play(experiment, engine, count=12)
    assert played[-1].row["accuracy"]["global"] > played[0].row["accuracy"]["global"]
    assert played[-1].row["terms"]["ce"] < 0.8 * played[0].row["terms"]["ce"]


def test_rounds_go_on_from_a_state_as_if_never_stopped(experiment, site):
    whole = tiny.play(experiment, tiny.FakeEngine(site), count=4)
    state = tiny.play(experiment, tiny.FakeEngine(site), count=2)[-1].state
    fresh = tiny.FakeEngine(tiny.site(Supervised(), tiny.problem()))
    third = rounds.run_round(experiment, fresh, state)
    fourth = rounds.run_round(experiment, fresh, third.state)
    assert [tiny.as_bytes(whole[2]), tiny.as_bytes(whole[3])] == [tiny.as_bytes(third), tiny.as_bytes(fourth)]


def test_a_state_of_clients_is_dropped_by_no_round(site):
    experiment = tiny.experiment(FedAvg(), site, clients_per_round=1)
    played = tiny.play(experiment, tiny.FakeEngine(site), count=8)
    for before, after in itertools.pairwise(played):
        assert set(before.state.clients) <= set(after.state.clients)
        untouched = set(before.state.clients) - set(after.row["cohort"])
        assert all(before.state.clients[k] is after.state.clients[k] for k in untouched)


def test_a_client_that_never_trained_begins_with_an_empty_state(experiment, engine):
    tiny.play(experiment, engine)
    assert all(job.state == ClientState() for job in engine.jobs if job.task == "train")


def test_failures_carry_their_client_round_and_exchange():
    found = failed(Job(task="train", client=3, round=7, exchange=1, payload=Payload()), "why", "raised", "trace")
    assert found == Failure(client=3, round=7, exchange=1, what="why", cause="raised", detail="trace")
