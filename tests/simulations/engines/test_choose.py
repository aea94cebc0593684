import subprocess
import sys
import time

import pytest
import tiny

from fedkd.config import EngineConfig, RunConfig, TrainConfig
from fedkd.engine import Engine, Reply
from fedkd.errors import EngineError
from simulations.engines import choose, ray_session
from simulations.engines.inline import Inline
from simulations.system import scratch


class FakePool(Engine):
    """A pool that is ready when the test says so."""

    name = "ray"

    def __init__(self, ready_after: int = 0, error: Exception | None = None) -> None:
        self.asked, self.ready_after, self.error = 0, ready_after, error
        self.ran, self.deadlines, self.closed = [], [], 0

    def start(self):
        return self

    @property
    def is_ready(self):
        self.asked += 1
        if self.error is not None and self.asked > self.ready_after:
            raise self.error
        return self.asked > self.ready_after

    def run(self, jobs, deadline=None):
        self.ran += [job.client for job in jobs]
        self.deadlines.append(deadline)
        yield from (Reply(client=job.client, round=job.round) for job in jobs)

    def close(self):
        self.closed += 1


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(ray_session, "num_cores", lambda: 2)


@pytest.fixture
def jobs(problem):
    return [tiny.job(problem, client=client) for client in range(3)]


def never(*_):
    raise AssertionError("nothing is to be measured")


def test_inline_is_taken_when_asked_for(site):
    engine, why = choose.make(EngineConfig(name="inline"), site, estimate=never, notify=never)
    assert isinstance(engine, Inline)
    assert why == "engine: inline, as asked"


def test_auto_takes_one_process_for_little_work(site, two_cores):
    engine, why = choose.make(EngineConfig(name="auto"), site, estimate=lambda: 3.0, notify=never)
    assert isinstance(engine, Inline)
    assert why.startswith("engine: inline, because plain training and evaluation take about 3 s on one core")


def test_auto_takes_ray_where_its_start_pays(two_cores):
    # 8 + 60 / (2 * 0.85) = 43.3
    assert choose.choose(EngineConfig(), lambda: 60.0) == (
        "ray",
        "because plain training and evaluation take about 60 s on one core and 43 s with 2 workers, start included; "
        "what the method adds is measured in round 1",
    )


def test_no_seconds_are_promised_for_what_the_server_does(two_cores):
    """A generator at the server took 238 s where a step of the student promised 2 s for the whole run."""
    _, why = choose.choose(EngineConfig(), lambda: 2.0)
    assert why.startswith("because plain training and evaluation take about 2 s")
    assert why.endswith("what the method adds is measured in round 1")


def test_auto_does_not_measure_where_there_is_one_core(monkeypatch):
    monkeypatch.setattr(ray_session, "num_cores", lambda: 1)
    assert choose.choose(EngineConfig(), never)[0] == "inline"
    assert choose.choose(EngineConfig(workers=8), never)[0] == "inline"


def test_auto_takes_the_cluster_it_is_given():
    assert choose.choose(EngineConfig(address="10.0.0.1:6379"), never)[0] == "ray"


def test_the_estimate_counts_steps_and_images(problem, site, monkeypatch):
    monkeypatch.setattr(choose, "step_seconds", lambda site: 0.5)
    config = RunConfig(rounds=4, clients=3, clients_per_round=2, train=TrainConfig(batch=4, steps=3))
    # 4 rounds * 2 clients * 3 steps = 24 steps; 4 rounds * (27 own + 27 pooled) images in batches of 4, at 0.3 steps
    assert choose.estimate(config, site) == pytest.approx(0.5 * (24 + 0.3 * 4 * 54 / 4))


def test_the_estimate_counts_epochs(problem, site, monkeypatch):
    monkeypatch.setattr(choose, "step_seconds", lambda site: 1.0)
    monkeypatch.setattr(choose, "FORWARD_SHARE", 0.0)
    config = RunConfig(rounds=2, clients=3, train=TrainConfig(batch=13, steps=None, epochs=5))
    # 39 samples, 3 clients: 13 each, one step an epoch
    assert choose.estimate(config, site) == pytest.approx(2 * 3 * 5)


def test_a_step_takes_some_time(site):
    assert 0 < choose.step_seconds(site) < 1


def test_jobs_run_here_until_the_pool_is_ready_and_there_from_then_on(site, jobs):
    pool = FakePool(ready_after=2)
    engine = choose.Warming(Inline(site), pool)
    results = list(engine.run(jobs))
    assert [reply.num_examples for reply in results] == [20, 12, 0]
    assert pool.ran == [2]
    list(engine.run(jobs))
    assert pool.ran == [2, 0, 1, 2]


def test_a_round_may_end_before_the_pool_is_ready(site, jobs):
    pool = FakePool(ready_after=100)
    assert len(list(choose.Warming(Inline(site), pool).run(jobs))) == 3
    assert pool.ran == []


def test_the_pool_gets_what_is_left_of_the_deadline(site, jobs):
    pool = FakePool(ready_after=1)
    start = time.monotonic()
    list(choose.Warming(Inline(site), pool).run(jobs, deadline=100.0))
    assert 100.0 - (time.monotonic() - start) <= pool.deadlines[0] < 100.0


def test_a_pool_that_cannot_start_ends_the_run(site, jobs):
    engine = choose.Warming(Inline(site), FakePool(error=EngineError("no room")))
    with pytest.raises(EngineError, match="no room"):
        list(engine.run(jobs))


def test_if_no_pool_starts_the_work_is_done_here_and_that_is_said_once(site, jobs):
    said = []
    pool = FakePool(ready_after=1, error=EngineError("no room in /dev/shm"))
    engine = choose.Warming(Inline(site), pool, lambda text, urgency: said.append((text, urgency)))
    assert [reply.num_examples for reply in [*engine.run(jobs), *engine.run(jobs)]] == [20, 12, 7] * 2
    assert said == [("Ray did not start, so this process does all the work: no room in /dev/shm", "warn")]
    assert pool.ran == []
    assert engine.facts() == {"given_up": "no room in /dev/shm"}


def test_a_pool_that_breaks_after_it_started_ends_the_run_under_auto_too(site, jobs):
    pool = FakePool()
    engine = choose.Warming(Inline(site), pool, lambda text, urgency: None)
    assert len(list(engine.run(jobs))) == 3
    pool.error, pool.asked = EngineError("Ray has died"), 99
    with pytest.raises(EngineError, match="has died"):
        list(engine.run(jobs))


def test_auto_takes_one_process_where_no_folder_is_short_enough_for_sockets(two_cores, monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "_places", lambda first=None: [tmp_path / ("x" * 60)])
    name, why = choose.choose(EngineConfig(), never)
    assert name == "inline"
    assert "a socket's may have" in why


def test_ray_that_is_asked_for_where_no_folder_is_short_enough_is_one_error_with_a_mend(site, monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "_places", lambda first=None: [tmp_path / ("x" * 60)])
    with pytest.raises(EngineError, match=r"set TMPDIR to .* at most 22 bytes, or use engine=inline") as caught:
        choose.make(EngineConfig(name="ray"), site, estimate=never, notify=never)
    assert caught.value.code == 3


def test_ray_is_not_imported_before_it_is_needed():
    code = "import sys, simulations.engines.choose; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
