"""The Flower engine and apps on a grid inside this process."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grids
import pytest
import tiny
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from grids import LocalGrid

from clients.fedgen import FedGen as FedGenClient
from clients.supervised import Supervised
from fedkd import rounds
from fedkd.config import EvaluateConfig, RunConfig
from fedkd.configuration import compose
from fedkd.engine import Engine, Failure, Job, Reply, Watch
from fedkd.errors import ConfigError, EngineError
from fedkd.experiment import Experiment, RunState
from fedkd.payload import Payload
from fedkd.strategy import Strategy
from fedkd.training.site import LocalSite
from simulations import flower_app
from simulations.deploy import answer
from simulations.flower import grid_engine
from simulations.flower.grid_engine import FlowerEngine
from simulations.run import runs
from simulations.run.options import Options
from strategies.fedavg import FedAvg
from strategies.fedgen import FedGen

FEDGEN = FedGen(FedGen.Config(noise=4, hidden=8, generator_steps=2))


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    grids.set_identity(monkeypatch)
    monkeypatch.setattr(grid_engine, "POLL", 0.001)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalSite], None]:
    """Let the ClientApp act at a site."""
    return lambda site: monkeypatch.setattr(answer, "_site", lambda overrides: site)


@pytest.fixture
def grid(site: LocalSite, at: Callable[[LocalSite], None]) -> LocalGrid:
    at(site)
    return LocalGrid(flower_app.client_app, 3)


def played(experiment: Experiment, engine: Engine, num_rounds: int = 3) -> list[rounds.Round]:
    state, found = rounds.begin(experiment), []
    for _ in range(num_rounds):
        found.append(rounds.run_round(experiment, engine, state))
        state = found[-1].state
    return found


def bare(played: list[rounds.Round]) -> object:
    """All of the rounds but the time they took."""
    return [tiny.canonical(replace(each, timings={})) for each in played]


@pytest.mark.parametrize(
    ("strategy", "client"), [(FedAvg(), Supervised()), (FEDGEN, FedGenClient(FedGenClient.Config(synthetic_batch=4)))]
)
@pytest.mark.parametrize(("nodes", "backwards"), [(3, False), (3, True), (2, True), (5, False)])
def test_rounds_on_a_grid_are_those_in_process(strategy: Strategy, client, nodes, backwards, at):
    site = tiny.site(client, tiny.problem(tiny.normed, statistics="local"))
    experiment = tiny.experiment(strategy, site, clients_per_round=2)
    at(site)
    grid = LocalGrid(flower_app.client_app, nodes)
    grid.backwards = backwards
    there = played(experiment, FlowerEngine(grid, site))
    assert bare(there) == bare(played(experiment, tiny.FakeEngine(site)))
    assert not there[-1].failures


class Liar(Supervised):
    """Client 0 sends 1e30 in round 1, and is honest later."""

    def report(self, trained, job):
        honest = super().report(trained, job)
        if (job.client, job.round) != (0, 1):
            return honest
        return Payload(weights={name: torch.full_like(entry, 1e30) for name, entry in honest.weights.items()})


def test_a_liar_behind_messages_is_refused_by_name_and_the_run_continues(at):
    site = tiny.site(Liar(), tiny.problem())
    at(site)
    there = played(tiny.experiment(FedAvg(), site), FlowerEngine(LocalGrid(flower_app.client_app, 3), site))
    assert [(failure.client, failure.cause) for each in there for failure in each.failures] == [(0, "range")]
    assert [each.row["clients"]["ok"] for each in there] == [2, 3, 3]
    assert there[-1].row["accuracy"]["global"] > 0


def test_a_client_is_the_node_with_its_partition(site, grid, job):
    list(FlowerEngine(grid, site).run([replace(job, client=k) for k in range(3)]))
    asked = {m.metadata.dst_node_id: m.content["job"]["client"] for m in grid.pushed if "job" in m.content}
    assert asked == grid.partitions


def test_parts_of_the_pooled_test_set_stay_at_the_server(site, grid, job):
    pooled = Job(task="evaluate_pooled", client=0, round=1, payload=job.payload)
    (result,) = FlowerEngine(grid, site).run([pooled])
    assert isinstance(result, Reply)
    assert result.num_examples == 27
    assert not grid.pushed


def test_equal_payloads_are_encoded_once(site, grid, job):
    list(FlowerEngine(grid, site).run([replace(job, client=k) for k in range(3)]))
    records = {id(m.content["payload.weights"]) for m in grid.pushed if "job" in m.content}
    assert len(records) == 1


def test_a_node_that_never_answers_is_late_and_the_round_goes_on(site, grid):
    grid.lose = {697}  # partition 1
    engine = FlowerEngine(grid, site)
    engine._nodes = (700, 697, 694)
    in_a_moment = replace(RunConfig().engine, deadline=0.2)
    never = EvaluateConfig(every=9, pooled_every=9, probe=0)  # evaluation knows no deadline
    experiment = tiny.experiment(FedAvg(), site, engine=in_a_moment, evaluate=never)
    (one,) = played(experiment, engine, num_rounds=1)
    assert one.row["clients"] == {"ok": 2, "failed": 0, "late": 1, "rejected": 0}
    assert [(f.client, f.what) for f in one.failures] == [(1, "client 1 did not answer before the deadline")]


def is_train_of(message: Message, client: int) -> bool:
    return message.metadata.message_type == MessageType.TRAIN and message.content["job"]["client"] == client


def error(message: Message, code: int) -> Message:
    """What a SuperLink makes up: the sender is not the node that is lost."""
    reply = Message(Error(code, "<class 'RuntimeError'>:<'boom'>"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


@pytest.mark.parametrize(
    ("code", "cause"), [(2, "raised"), (0, "raised"), (3, "late"), (4, "late"), (5, "lost"), (8, "lost")]
)
def test_error_replies_become_failures_of_the_client_that_was_asked(code, cause, site, grid, job):
    grid.spoil = lambda message, reply: error(message, code) if is_train_of(message, 2) else reply
    results = list(FlowerEngine(grid, site).run([replace(job, client=k) for k in range(3)]))
    (failure,) = [result for result in results if isinstance(result, Failure)]
    assert (failure.client, failure.round, failure.cause) == (2, 1, cause)
    assert "boom" in failure.what


def test_a_node_that_has_gone_is_lost(site, grid, job):
    engine = FlowerEngine(grid, site)
    list(engine.run([job]))
    del grid.partitions[697]
    results = {result.client: result for result in engine.run([replace(job, client=k) for k in range(3)])}
    assert results[1].cause == "lost"
    assert isinstance(results[0], Reply)


def test_a_client_speaks_for_itself_only(site, grid, job):
    def impersonate(message: Message, reply: Message) -> Message:
        if is_train_of(message, 2):
            reply.content["reply"]["client"] = 0
        return reply

    engine = FlowerEngine(grid, site)
    engine._nodes = (700, 697, 694)
    grid.spoil = impersonate
    results = list(engine.run([replace(job, client=k) for k in range(3)]))
    assert sorted((r.client, getattr(r, "cause", "ok")) for r in results) == [(0, "ok"), (1, "ok"), (2, "stale")]


def test_a_reply_that_cannot_be_read_is_a_failure_with_a_cause(site, grid, job):
    engine = FlowerEngine(grid, site)
    engine._nodes = (700, 697, 694)
    grid.spoil = lambda message, reply: Message(RecordDict(), reply_to=message)
    (failure,) = engine.run([job])
    assert (failure.cause, failure.what) == ("kinds", "record 'reply' is missing, expected a ConfigRecord")


def test_what_a_client_raises_arrives_with_its_traceback(site, grid, job, at):
    class Broken(Supervised):
        def terms(self, student, batch, job):
            raise ArithmeticError("no such thing")

    at(replace(site, client=Broken()))
    (failure,) = FlowerEngine(grid, site).run([replace(job, client=1)])
    assert (failure.client, failure.cause, failure.what) == (1, "raised", "ArithmeticError: no such thing")
    assert "in terms" in failure.detail


def test_a_client_that_cannot_even_begin_is_a_failure(site, job):
    grid = LocalGrid(flower_app.client_app, 3, {"overrides": "rounds=0"})
    (failure,) = FlowerEngine(grid, site).run([replace(job, client=1)])
    assert (failure.client, failure.cause) == (1, "raised")
    assert "rounds = 0" in failure.what


def test_nodes_are_found_as_they_appear(grid):
    late = dict(grid.partitions)
    grid.get_node_ids = lambda: set(late if grid.pushed else [700])  # the others come after the first question
    assert grid_engine.find_nodes(grid, patience=5) == (700, 697, 694)


def test_missing_nodes_end_the_wait_with_an_error(grid):
    grid.get_node_ids = lambda: {700}
    with pytest.raises(EngineError, match="has 1 of 3 nodes"):
        grid_engine.find_nodes(grid, patience=0.05)


def answer_with(grid: LocalGrid, **said: object) -> None:
    grid.app = lambda message, context: Message(RecordDict({"node": ConfigRecord(said)}), reply_to=message)


@pytest.mark.parametrize(
    "said", [{}, {"partition-id": 3, "num-partitions": 3}, {"partition-id": "0", "num-partitions": 3}]
)
def test_nodes_must_say_which_partition_they_have(said, grid):
    answer_with(grid, **said)
    with pytest.raises(EngineError, match="does not say which partition"):
        grid_engine.find_nodes(grid, patience=1)


def test_two_nodes_with_one_partition_are_not_enough(grid):
    answer_with(grid, **{"partition-id": 0, "num-partitions": 3})
    with pytest.raises(EngineError, match="has 1 of 3 nodes"):
        grid_engine.find_nodes(grid, patience=0.05)


SMALL = "clients=3 rounds=2 train.steps=2 strategy.generator_steps=2 evaluate.probe=8"


def serve(grid: LocalGrid, runs_folder: Path | str, overrides: str, name: str = "") -> None:
    given = {"overrides": overrides, "runs": str(runs_folder), "name": name}
    flower_app.server_app(grid, Context(1, 1, {}, RecordDict(), given))


def test_the_apps_write_the_run_folder_that_fedkd_run_writes(tmp_path):
    grid = LocalGrid(flower_app.client_app, 3, {"overrides": SMALL})
    serve(grid, tmp_path / "flower", SMALL, "a")
    runs.start(
        compose.resolve([*SMALL.split(), "engine=inline"]),
        runs=tmp_path / "inline",
        name="a",
        options=Options(quiet=True),
    )
    for file in ("metrics.jsonl", "clients.jsonl", "partition.json"):
        assert (tmp_path / "flower/a" / file).read_bytes() == (tmp_path / "inline/a" / file).read_bytes(), file
    info = json.loads((tmp_path / "flower/a/run.json").read_text())
    assert (info["state"], info["engine"]["nodes"]) == ("done", 3)


def test_a_run_on_flower_can_be_resumed_without_it(tmp_path, monkeypatch):
    grid = LocalGrid(flower_app.client_app, 3, {"overrides": SMALL})
    serve(grid, tmp_path, SMALL, "whole")
    monkeypatch.setattr(rounds, "run_round", _dies_after(rounds.run_round, rounds_played=1))
    with pytest.raises(SystemError, match="killed"):
        serve(grid, tmp_path, SMALL, "broken")
    monkeypatch.undo()
    runs.resume(tmp_path / "broken", runs=tmp_path, options=Options(quiet=True))
    assert (tmp_path / "broken/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def _dies_after(play: Callable[..., rounds.Round], rounds_played: int) -> Callable[..., rounds.Round]:
    def dying(experiment: Experiment, engine: Engine, state: RunState, watch: Watch) -> rounds.Round:
        if state.round == rounds_played:
            raise SystemError("killed")
        return play(experiment, engine, state, watch)

    return dying


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"overrides": "rounds=1", "runs": "runs"}, "runs = 'runs' is not absolute"),
        ({"overrides": "rounds=0", "runs": "/nowhere"}, "rounds = 0"),
        ({"overrides": "data='digits", "runs": "/nowhere"}, "No closing quotation"),
    ],
)
def test_mistakes_in_the_run_config_are_errors_before_anything_runs(given, says, grid):
    with pytest.raises(ConfigError) as caught:
        serve(grid, given["runs"], given["overrides"])
    assert says in str(caught.value)
    assert not grid.pushed
