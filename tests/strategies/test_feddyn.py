"""FedDyn's server half and both halves together: invariants, golden numbers of tests/quadratics.py."""

from dataclasses import replace

import pytest
import quadratics
import tiny
import torch
from torch.testing import assert_close

from clients.feddyn import FedDyn as Client
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.config import TrainConfig
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn, State

STREAM = seeds.stream(0, "test")
UNIFORM = FedAvg(FedAvg.Config(weighting="uniform"))


def feddyn(**changes):
    return FedDyn(FedDyn.Config(**changes))


def client(alpha=0.5):
    return Client(Client.Config(alpha=alpha))


# Golden: tests/quadratics.py


def test_two_scalar_clients_reach_the_golden_weights_and_tilts():
    first, second = quadratics.play(feddyn(), client(0.5), 2)
    tilts = [-0.5 * quadratics.scalar(first.state.clients[k].memory["moved"]) for k in (0, 1)]
    assert tilts == pytest.approx([0.128625, -0.4625], abs=1e-6)
    assert -0.5 * quadratics.scalar(first.state.server.moved) == pytest.approx(-0.166938, abs=1e-6)
    assert quadratics.scalar(first.state.server.weights) == pytest.approx(1.66775, abs=1e-6)
    own = [quadratics.scalar(first.state.server.weights)] * 2
    for k, goal in enumerate((1.27181, 2.176962)):
        moved = [quadratics.scalar(p.state.clients[k].memory["moved"]) for p in (first, second)]
        assert own[k] + moved[1] - moved[0] == pytest.approx(goal, abs=1e-5)
    assert -0.5 * quadratics.scalar(second.state.server.moved) == pytest.approx(-0.195256, abs=1e-6)
    assert quadratics.scalar(second.state.server.weights) == pytest.approx(2.114898, abs=1e-5)


def test_it_converges_to_the_true_optimum():
    """Where FedAvg stops at 1.9289 (tests/strategies/test_scaffold.py)."""
    played = quadratics.play(feddyn(), client(1.0), 30, steps=8)
    assert quadratics.scalar(played[-1].state.server.weights) == pytest.approx(2, abs=2e-3)


# Invariants


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_the_first_round_moves_the_mean_twice_if_all_take_part(make):
    problem = tiny.problem(make)
    site = tiny.site(client(0.1), problem)
    (played,) = tiny.play(tiny.experiment(feddyn(), site), tiny.FakeEngine(site))
    server, start = played.state.server, problem.initial().weights
    for name, mean in server.mean.items():
        twice = mean - start[name] if name in server.moved else 0.0  # statistics are averaged and that is all
        assert_close(server.weights[name], mean + twice)


@pytest.mark.parametrize("per_round", [None, 2, 1])
def test_the_servers_h_is_the_mean_of_the_clients_under_any_participation(problem, per_round):
    site = tiny.site(client(0.1), problem)
    experiment = tiny.experiment(feddyn(), site, clients_per_round=per_round)
    for played in tiny.play(experiment, tiny.FakeEngine(site), count=4):
        for name, moved in played.state.server.moved.items():
            total = sum(state.memory["moved"][name] for state in played.state.clients.values())
            assert_close(moved, total / 3, rtol=1e-4, atol=1e-6)


def test_equal_clients_have_equal_tilts(problem):
    problem = replace(problem, clients=2, train=TrainConfig(batch=64, steps=3, lr=0.1))
    site = tiny.site(client(0.1), problem, sizes=(9, 9))
    site = replace(site, train_index={0: site.train_index[0], 1: site.train_index[0]})
    state = tiny.play(tiny.experiment(feddyn(), site), tiny.FakeEngine(site), count=2)[-1].state
    for name, value in state.clients[0].memory["moved"].items():
        assert_close(value, state.clients[1].memory["moved"][name], rtol=1e-4, atol=1e-6)


def test_a_large_alpha_holds_clients_where_they_are(problem):
    """alpha to infinity, h = 0: no movement; a step no longer than 1 / alpha is needed for that."""
    problem = replace(problem, train=TrainConfig(batch=64, steps=200, lr=1e-3))
    site = tiny.site(client(1000.0), problem)
    (played,) = tiny.play(tiny.experiment(feddyn(), site), tiny.FakeEngine(site))
    for name, moved in played.state.server.moved.items():
        assert float(moved.abs().max()) < 5e-3, name


def test_alpha_0_without_the_servers_memory_is_fedavg_to_the_bit(problem):
    ours, theirs = (tiny.site(half, problem) for half in (client(0.0), Supervised()))
    silent = feddyn(server_memory=0.0)
    mine = tiny.play(tiny.experiment(silent, ours), tiny.FakeEngine(ours), count=3)
    fedavg = tiny.play(tiny.experiment(UNIFORM, theirs), tiny.FakeEngine(theirs), count=3)
    for one, other in zip(mine, fedavg, strict=True):
        tiny.assert_same_weights(one.state.server.weights, other.state.server.weights)


def some_state(clients=4):
    weights = {"w": torch.tensor([1.0])}
    return State(weights, weights, {"w": torch.tensor([0.0])}, {}, clients)


def reply(client, value, size=1):
    return tiny.reply(client, num_examples=size, payload=Payload(weights={"w": torch.tensor([value])}))


def test_the_divisor_of_h_is_the_number_of_all_clients_not_of_the_cohort():
    after, _ = feddyn().aggregate(some_state(), [reply(0, 2.0), reply(3, 4.0)], STREAM)
    assert float(after.mean["w"]) == 3.0
    assert float(after.moved["w"]) == (1.0 + 3.0) / 4
    assert float(after.weights["w"]) == 4.0


def test_the_mean_is_uniform_whatever_the_sizes():
    for weighting in ("uniform", "examples"):
        after, _ = feddyn(weighting=weighting).aggregate(some_state(), [reply(0, 2.0, 1), reply(3, 4.0, 9)], STREAM)
        assert float(after.mean["w"]) == 3.0


@pytest.mark.parametrize(("serve", "expected"), [("corrected", 4.0), ("mean", 3.0)])
def test_what_is_evaluated_is_a_switch_and_clients_get_the_corrected_student_anyway(serve, expected):
    strategy = feddyn(serve=serve)
    after, _ = strategy.aggregate(some_state(), [reply(0, 2.0), reply(3, 4.0)], STREAM)
    assert float(strategy.evaluation_payload(after, None).weights["w"]) == expected
    assert float(strategy.plan(after, Cohort((0,), 2))[0].weights["w"]) == 4.0


def test_the_mean_size_is_told_where_sizes_count_once_known():
    strategy = feddyn(weighting="examples")
    assert strategy.plan(some_state(), Cohort((0,), 1))[0].numbers is None
    after, _ = strategy.aggregate(some_state(), [reply(0, 2.0, 1), reply(3, 4.0, 9)], STREAM)
    assert strategy.plan(after, Cohort((0,), 2))[0].numbers == {"mean_size": 5.0}
    assert feddyn().plan(after, Cohort((0,), 2))[0].numbers is None
