"""as_flower: our strategies under Flower's own loop, with our ClientApp at the other end."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grids
import pytest
import tiny
import torch
from flwr.app import Context, Error, Message, MessageType, RecordDict
from grids import LocalGrid

from clients.fedgen import FedGen as FedGenClient
from clients.supervised import Supervised
from fedkd import rounds
from fedkd.engine import ClientId, Reply
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment, RunState
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training.site import LocalSite
from simulations import flower_app
from simulations.deploy import answer
from simulations.flower import codec
from simulations.flower.bridge import as_flower
from strategies.fedavg import FedAvg
from strategies.fedgen import FedGen


@dataclass(frozen=True)
class TwoStepState:
    weights: Weights
    exchanges: int


class TwoSteps(Strategy[TwoStepState]):
    """Two exchanges a round; the second goes on from the first one's mean."""

    needs = gives = frozenset({"weights"})
    exchanges = 2

    def init(self, problem: Problem, stream: Stream) -> TwoStepState:
        return TwoStepState(problem.initial().weights, 0)

    def plan(self, state: TwoStepState, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, Payload(weights=state.weights))

    def aggregate(self, state: TwoStepState, replies: Sequence[Reply], stream: Stream) -> tuple[TwoStepState, Numbers]:
        mean = {n: torch.stack([r.payload.weights[n] for r in replies]).mean(0) for n in state.weights}
        return TwoStepState(mean, state.exchanges + 1), {"noise": float(torch.rand(1, generator=stream.torch()))}

    def evaluation_payload(self, state: TwoStepState, client: ClientId | None) -> Payload | None:
        return Payload(weights=state.weights)


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    grids.set_identity(monkeypatch)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalSite], LocalGrid]:
    """A grid whose ClientApp acts at a site; replies come in reverse order."""

    def serve(site: LocalSite) -> LocalGrid:
        monkeypatch.setattr(answer, "_site", lambda overrides: site)
        grid = LocalGrid(flower_app.client_app, 3)
        grid.backwards = True
        return grid

    return serve


FEDGEN = FedGen(FedGen.Config(noise=4, hidden=8, generator_steps=2))
FEDGEN_CLIENT = FedGenClient(FedGenClient.Config(synthetic_batch=4))


def our_rounds(experiment: Experiment, site: LocalSite, num_rounds: int) -> RunState:
    state = rounds.begin(experiment)
    for _ in range(num_rounds):
        state = rounds.run_round(experiment, tiny.FakeEngine(site), state).state
    return state


@pytest.mark.parametrize(
    ("strategy", "client"), [(FedAvg(), Supervised()), (FEDGEN, FEDGEN_CLIENT), (TwoSteps(), Supervised())]
)
def test_flowers_loop_ends_where_ours_does(strategy, client, at):
    site = tiny.site(client, tiny.problem(tiny.normed))
    experiment = tiny.experiment(strategy, site, clients_per_round=2)
    bridge = as_flower(experiment)
    result = bridge.start(at(site), bridge.initial_arrays, num_rounds=3 * strategy.exchanges)
    expected = our_rounds(experiment, site, 3)
    assert tiny.canonical(bridge.state) == tiny.canonical(expected)
    served = strategy.evaluation_payload(expected.server, None).weights
    tiny.assert_same_weights({name: codec.decode_tensor(array, name) for name, array in result.arrays.items()}, served)


def test_metrics_are_those_of_our_ledger(site, at):
    experiment = tiny.experiment(FedAvg(), site)
    bridge = as_flower(experiment)
    result = bridge.start(at(site), bridge.initial_arrays, num_rounds=1)
    row = rounds.run_round(experiment, tiny.FakeEngine(site), rounds.begin(experiment)).row
    trained, evaluated = result.train_metrics_clientapp[1], result.evaluate_metrics_clientapp[1]
    assert (trained["replies"], trained["failures"]) == (3, 0)
    assert trained["ce"] == row["terms"]["ce"]
    assert trained["effective_senders"] == row["server"]["effective_senders"]
    assert evaluated["accuracy-mean"] == row["accuracy"]["clients"]["mean"]
    assert evaluated["num-examples"] == 27


def test_training_starts_from_the_arrays_given(site, at):
    bridge = as_flower(tiny.experiment(FedAvg(), site))
    warm = {name: value + 1 for name, value in site.problem.initial().weights.items()}
    grid = at(site)
    bridge.start(grid, codec.encode_weights(warm), num_rounds=1)
    sent = next(m.content["payload.weights"] for m in grid.pushed if m.metadata.message_type == MessageType.TRAIN)
    tiny.assert_same_weights({n: codec.decode_tensor(a, n) for n, a in sent.items()}, warm)


def test_a_second_start_begins_anew(site, at):
    bridge = as_flower(tiny.experiment(FedAvg(), site))
    first = bridge.start(at(site), bridge.initial_arrays, num_rounds=2)
    second = bridge.start(at(site), bridge.initial_arrays, num_rounds=2)
    assert first.arrays == second.arrays


@pytest.mark.parametrize("change", [lambda v: {"strange": v}, lambda v: {"head.bias": v[:2]}])
def test_arrays_of_another_student_are_refused(change, site, at):
    bridge = as_flower(tiny.experiment(FedAvg(), site))
    wrong = codec.encode_weights(change(site.problem.initial().weights["head.bias"]))
    with pytest.raises(ConfigError, match="no entry of the student"):
        bridge.start(at(site), wrong, num_rounds=1)


def failing(*clients: int, exchange: int = 0) -> Callable[[Message, Message], Message]:
    def spoil(message: Message, reply: Message) -> Message:
        about = message.content.get("job", {})
        if about.get("task") == "train" and about["client"] in clients and about["exchange"] == exchange:
            return Message(Error(2, "boom"), reply_to=message)
        return reply

    return spoil


def test_a_failing_client_is_left_out(site, at, caplog):
    experiment = tiny.experiment(FedAvg(), site)
    bridge, grid = as_flower(experiment), at(site)
    grid.spoil = failing(1)
    result = bridge.start(grid, bridge.initial_arrays, num_rounds=1)
    assert result.train_metrics_clientapp[1]["failures"] == 1
    assert sorted(bridge.state.clients) == [0, 2]
    assert "client 1 failed in round 1" in caplog.text


def test_a_reply_that_the_border_refuses_is_left_out(site, at):
    class Poisonous(Supervised):
        def report(self, trained, job):
            payload = super().report(trained, job)
            poison = {name: value * (float("nan") if job.client == 2 else 1) for name, value in payload.weights.items()}
            return replace(payload, weights=poison)

    bridge = as_flower(tiny.experiment(FedAvg(), site))
    bridge.start(at(replace(site, client=Poisonous())), bridge.initial_arrays, num_rounds=1)
    assert sorted(bridge.state.clients) == [0, 1]


@pytest.mark.parametrize("exchange", [0, 1])
def test_a_round_below_the_quorum_leaves_the_state_as_it_was(exchange, site, at):
    experiment = tiny.experiment(TwoSteps(), site, quorum=2)
    bridge, grid = as_flower(experiment), at(site)
    grid.spoil = failing(0, 2, exchange=exchange)
    result = bridge.start(grid, bridge.initial_arrays, num_rounds=2)
    assert tiny.canonical(bridge.state) == tiny.canonical(rounds.begin(experiment))
    assert result.train_metrics_clientapp[2 if exchange else 1]["replies"] == 1


def test_the_server_app_in_the_documentation_works(capsys):
    page = (Path(__file__).parents[3] / "docs/flower.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)  # our own page
    overrides = {"overrides": "clients=3 train.steps=2 strategy.generator_steps=2 evaluate.probe=8"}
    names["app"](LocalGrid(flower_app.client_app, 3, overrides), Context(1, 1, {}, RecordDict(), overrides))
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) < 1
