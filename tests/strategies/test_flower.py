"""Flower's strategies as server halves: against Flower's own loop, bit for bit."""

import gc
import logging
from collections.abc import Iterable

import grids
import pytest
import tiny
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as stock

from clients.supervised import Supervised
from fedkd import rounds, seeds, state_values
from fedkd.engine import Reply
from fedkd.errors import ConfigError
from fedkd.payload import Payload, Weights
from fedkd.problem import Problem
from fedkd.strategy import Cohort
from strategies import flower
from strategies.fedavg import FedAvg
from strategies.flower import FlowerStrategy

CLIENTS = 7  # what Bulyan needs for one liar
SIZES = (3, 10, 4, 25, 8, 9, 6)
STREAM = seeds.stream(0, "test")

ALGORITHMS = {
    "FedAvg": ({}, {}),
    "FedAvgM": ({"server_momentum": 0.9, "server_lr": 0.7}, {"server_momentum": 0.9, "server_learning_rate": 0.7}),
    "FedAdam": ({"server_lr": 0.05, "beta_2": 0.9}, {"eta": 0.05, "beta_2": 0.9}),
    "FedYogi": ({"adaptivity": 0.01}, {"tau": 0.01}),
    "FedAdagrad": ({}, {}),
    "FedMedian": ({}, {}),
    "FedTrimmedAvg": ({"trim": 0.3}, {"beta": 0.3}),
    "Krum": ({"malicious": 1}, {"num_malicious_nodes": 1}),
    "MultiKrum": ({"malicious": 1, "selected": 3}, {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
    "Bulyan": ({"malicious": 1}, {"num_malicious_nodes": 1}),
}


@pytest.fixture
def problem() -> Problem:
    return tiny.problem(tiny.normed, clients=CLIENTS)


def trained(weights: Weights, client: int, number: int) -> Weights:
    """What a client makes of the weights it gets: the same in both worlds, different for each client and round."""
    draw = seeds.stream(0, "toy", round=number, client=client).torch()
    return {name: value.float() + 0.1 * torch.rand(value.shape, generator=draw) for name, value in weights.items()}


def flowers_client(message: Message, context: Context) -> Message:
    partition, number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
    weights = {name: torch.from_numpy(array.numpy()) for name, array in message.content["arrays"].items()}
    back = ArrayRecord({name: Array(value.numpy()) for name, value in trained(weights, partition, number).items()})
    metrics = MetricRecord({"num-examples": SIZES[partition]})
    return Message(RecordDict({"arrays": back, "metrics": metrics}), reply_to=message)


class SortedGrid(grids.LocalGrid):
    """Replies in order of partitions: Flower's own order differs from run to run, and with it the last bits."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        return sorted(replies, key=lambda reply: self.partitions[reply.metadata.src_node_id])


def flowers_weights(name: str, given: dict[str, float], initial: Weights, num_rounds: int) -> Weights:
    """What Flower's own loop gives."""
    everyone = {"min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS, "fraction_evaluate": 0.0}
    made = getattr(stock, name)(**given, **everyone)
    arrays = ArrayRecord({entry: Array(value.numpy()) for entry, value in initial.items()})
    result = made.start(SortedGrid(flowers_client, CLIENTS), arrays, num_rounds=num_rounds)
    return {entry: torch.from_numpy(array.numpy()) for entry, array in result.arrays.items()}


def our_replies(strategy: FlowerStrategy, state: flower.State, number: int) -> list[Reply]:
    plan = strategy.plan(state, Cohort(tuple(range(CLIENTS)), number))
    return [
        Reply(
            client=client,
            round=number,
            payload=Payload(weights=trained(payload.weights, client, number)),
            num_examples=SIZES[client],
        )
        for client, payload in plan.items()
    ]


def play(strategy: FlowerStrategy, problem: Problem, num_rounds: int) -> flower.State:
    state = strategy.init(problem, STREAM)
    for number in range(1, num_rounds + 1):
        state, _ = strategy.aggregate(state, our_replies(strategy, state, number), STREAM)
    return state


@pytest.mark.parametrize("name", ALGORITHMS)
def test_gives_flowers_weights_to_the_last_bit(name, problem, monkeypatch):
    grids.set_identity(monkeypatch)
    ours, theirs = ALGORITHMS[name]
    strategy = FlowerStrategy(FlowerStrategy.Config(algorithm=name, statistics="optimise", **ours))
    monkeypatch.setattr(gc, "collect", lambda: 0)  # Flower's Bulyan does it for every reply: seconds in a test process
    state = play(strategy, problem, 3)
    expected = flowers_weights(name, theirs, problem.initial().weights, 3)
    tiny.assert_same_weights({**state.weights, **state.exact}, expected)
    tiny.assert_same_weights(
        strategy.evaluation_payload(state, None).weights, {entry: value.float() for entry, value in expected.items()}
    )


def test_optimisers_leave_batchnorm_statistics_to_the_mean(problem, monkeypatch):
    grids.set_identity(monkeypatch)
    state = play(FlowerStrategy(FlowerStrategy.Config(algorithm="FedAdam")), problem, num_rounds=2)
    learnable = {n: v for n, v in problem.initial().weights.items() if n not in problem.statistic_names}
    expected = flowers_weights("FedAdam", {}, learnable, num_rounds=2)
    tiny.assert_same_weights({**state.weights, **state.exact}, expected)
    assert list(state.statistics) == list(problem.statistic_names)
    averaged = play(FlowerStrategy(), problem, num_rounds=1)
    one = play(FlowerStrategy(FlowerStrategy.Config(algorithm="FedAdam")), problem, num_rounds=1)
    for name, value in one.statistics.items():
        torch.testing.assert_close(value, averaged.weights[name])


def test_the_first_step_of_flowers_fedadam_is_not_that_of_the_paper():
    """docs/strategies/flower.md, equation 5: 0.073511, where Reddi et al. make 0.099010."""
    config = FlowerStrategy.Config(algorithm="FedAdam", server_lr=0.1)
    state = flower.State({"w": torch.zeros(1)}, statistics={}, exact={}, memory={})
    after, _ = FlowerStrategy(config).aggregate(state, [tiny.reply(0, {"w": torch.ones(1)})], STREAM)
    assert float(after.exact["w"]) == pytest.approx(0.073511, abs=1e-6)


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedYogi"])
def test_memory_survives_a_checkpoint(name, problem):
    strategy = FlowerStrategy(FlowerStrategy.Config(algorithm=name, server_lr=0.1, **momentum_of(name)))
    half = play(strategy, problem, num_rounds=2)
    tensors, plain = state_values.flatten(half)
    reloaded = state_values.restore(strategy.init(problem, STREAM), plain, tensors)
    replies = our_replies(strategy, half, 3)
    on, _ = strategy.aggregate(half, replies, STREAM)
    again, _ = strategy.aggregate(reloaded, replies, STREAM)
    forgetful, _ = strategy.aggregate(flower.replace(half, memory={}), replies, STREAM)
    assert tiny.canonical(on) == tiny.canonical(again)
    assert tiny.canonical(on.weights) != tiny.canonical(forgetful.weights), "there was something to remember"


def momentum_of(name: str) -> dict[str, float]:
    return {"server_momentum": 0.9} if name == "FedAvgM" else {}


def test_the_state_given_is_not_changed(problem):
    strategy = FlowerStrategy(FlowerStrategy.Config(algorithm="FedAdam"))
    state = play(strategy, problem, num_rounds=1)
    before = tiny.canonical(state)
    strategy.aggregate(state, our_replies(strategy, state, 2), STREAM)
    assert tiny.canonical(state) == before


def test_entries_keep_their_dtype_though_flower_computes_in_another(problem):
    state = play(FlowerStrategy(FlowerStrategy.Config(algorithm="FedAdam")), problem, num_rounds=1)
    assert {value.dtype for value in state.weights.values()} == {torch.float32}
    assert {value.dtype for value in state.exact.values()} == {torch.float64}


def test_krum_does_not_follow_a_liar(problem):
    strategy = FlowerStrategy(FlowerStrategy.Config(algorithm="Krum", malicious=1))
    state = strategy.init(problem, STREAM)
    replies = our_replies(strategy, state, 1)
    lie = {name: value + 1e6 for name, value in replies[3].payload.weights.items()}
    replies[3] = tiny.reply(3, lie, SIZES[3])
    after, _ = strategy.aggregate(state, replies, STREAM)
    honest = [tiny.canonical(r.payload.weights) for r in replies if r.client != 3]
    assert tiny.canonical(dict(after.weights)) in honest


def test_too_few_replies_for_bulyan_keep_the_weights_and_say_so(problem):
    strategy = FlowerStrategy(FlowerStrategy.Config(algorithm="Bulyan", malicious=2))
    state = strategy.init(problem, STREAM)
    after, numbers = strategy.aggregate(state, our_replies(strategy, state, 1), STREAM)
    assert numbers == {"skipped": 1.0}
    tiny.assert_same_weights(after.weights, state.weights)


def test_a_hyper_parameter_that_the_algorithm_lacks_is_an_error(problem):
    strategy = FlowerStrategy(FlowerStrategy.Config(algorithm="FedMedian", trim=0.1))
    with pytest.raises(ConfigError, match=r"trim = 0.1: Flower's FedMedian has no such") as caught:
        strategy.init(problem, STREAM)
    assert "it has: none" in str(caught.value)


def test_stock_fedavg_plays_a_run_like_ours():
    problem = tiny.problem()
    site = tiny.site(Supervised(), problem)
    states = []
    for strategy in (FlowerStrategy(), FedAvg()):
        experiment = tiny.experiment(strategy, site)
        state = rounds.begin(experiment)
        for _ in range(3):
            state = rounds.run_round(experiment, tiny.FakeEngine(site), state).state
        states.append(state.server.weights)
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-6)


def test_aggregating_is_quiet_and_leaves_flowers_log_as_it_was(problem, caplog):
    strategy = FlowerStrategy()
    logging.getLogger("flwr").setLevel(logging.DEBUG)
    with caplog.at_level(logging.INFO):
        play(strategy, problem, num_rounds=1)
    assert not caplog.records
    assert logging.getLogger("flwr").level == logging.DEBUG
