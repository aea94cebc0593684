"""FedAvg's server half: invariants (docs/strategies/fedavg.md, equation 2)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd import rounds, seeds
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg, State

STREAM = seeds.stream(0, "test")


def fedavg(**config: str) -> FedAvg:
    return FedAvg(FedAvg.Config(**config))  # type: ignore[arg-type]


def mean(strategy: FedAvg, weights: list[float], sizes: list[int]) -> tuple[float, dict]:
    replies = [tiny.reply(k, {"w": torch.tensor([w])}, n) for k, (w, n) in enumerate(zip(weights, sizes, strict=True))]
    state, numbers = strategy.aggregate(State({"w": torch.zeros(1)}), replies, STREAM)
    return float(state.weights["w"]), dict(numbers)


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 1.66425), ("uniform", 1.3525)])
def test_golden_mean_of_two_scalar_clients(weighting, expected):
    """Golden: tests/quadratics.py, n = (1, 3)."""
    assert mean(fedavg(weighting=weighting), [0.729, 1.976], [1, 3])[0] == pytest.approx(expected, abs=1e-6)


def test_golden_fixed_point_of_two_scalar_clients():
    """Golden: tests/quadratics.py, uniform, three steps a round, 500 rounds."""
    w, strategy = 1.0, fedavg(weighting="uniform")
    for _ in range(500):
        sent = []
        for a, b in ((1, 0), (2, 3)):
            local = w
            for _ in range(3):
                local -= 0.1 * a * (local - b)
            sent.append(local)
        w, _ = mean(strategy, sent, [1, 3])
    assert w == pytest.approx(1.928854, abs=2e-6)


def test_one_client_is_its_model(problem):
    sent = tiny.reply(0, problem.initial().weights, 7)
    state, numbers = fedavg().aggregate(State({}), [sent], STREAM)
    tiny.assert_same_weights(state.weights, sent)
    assert numbers == {"effective_senders": pytest.approx(1)}


def test_effective_senders_tell_how_even_the_weights_are():
    assert mean(fedavg(), [0.0, 1.0], [5, 5])[1] == {"effective_senders": pytest.approx(2)}
    assert mean(fedavg(), [0.0, 1.0], [10**6, 1])[1] == {"effective_senders": pytest.approx(1, abs=1e-3)}


def test_it_begins_with_the_problems_student_whatever_the_stream(problem):
    one, other = (fedavg().init(problem, seeds.stream(k, "server")) for k in range(2))
    tiny.assert_same_weights(one.weights, problem.initial())
    tiny.assert_same_weights(one.weights, other.weights)


def test_all_clients_receive_one_object(problem):
    strategy = fedavg()
    payloads = strategy.plan(strategy.init(problem, STREAM), Cohort((0, 2, 5), 1))
    assert list(payloads) == [0, 2, 5]
    assert len({id(payload) for payload in payloads.values()}) == 1


@pytest.mark.parametrize(("share", "entries"), [("all", 4), ("head", 2)])
def test_what_is_shared_travels_and_a_private_extractor_leaves_no_global_student(problem, share, entries):
    strategy = fedavg(share=share)
    state = strategy.init(problem, STREAM)
    assert len(state.weights) == entries
    assert len(strategy.evaluation_payload(state, 1).weights) == entries
    assert (strategy.evaluation_payload(state, None) is None) == (share == "head")


def test_local_statistics_are_not_part_of_the_state():
    problem = tiny.problem(tiny.normed, statistics="local")
    assert not any(".running_" in name for name in fedavg().init(problem, STREAM).weights)


def test_one_full_batch_step_of_all_is_one_central_step():
    """Exact, as long as no BatchNorm is in the way."""
    sizes = (20, 12, 7)
    train = replace(tiny.TRAIN, batch=20, steps=1)
    apart = tiny.problem(train=train)
    together = tiny.problem(train=replace(train, batch=39))
    federated = _after_a_round(tiny.site(Supervised(), apart, sizes))
    central = _after_a_round(tiny.site(Supervised(), together, (39,)))
    assert_close(dict(federated), dict(central), rtol=1e-5, atol=1e-6)


def _after_a_round(site):
    experiment = tiny.experiment(fedavg(), site)
    return rounds.run_round(experiment, tiny.FakeEngine(site), rounds.begin(experiment)).state.server.weights
