"""SCAFFOLD's server half and both halves together: invariants, golden numbers of tests/quadratics.py."""

from dataclasses import replace

import pytest
import quadratics
import tiny
import torch
from torch.testing import assert_close

from clients.scaffold import Scaffold as Client
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.config import TrainConfig
from fedkd.errors import ConfigError
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg
from strategies.scaffold import Scaffold

UNIFORM = FedAvg(FedAvg.Config(weighting="uniform"))


def scaffold(**changes):
    return Scaffold(Scaffold.Config(**changes))


def control(state):
    return {name: value / state.clients for name, value in state.total.items()}


# Golden: tests/quadratics.py


def test_two_scalar_clients_reach_the_golden_weights_and_variates():
    first, second = quadratics.play(scaffold(), Client(), 2)
    golden = (
        (first, 1.3525, (0.903333, -3.253333), -1.175),
        (second, 1.599284, (1.422664, -3.067889), -0.822612),
    )
    for played, w, own, mean in golden:
        assert quadratics.scalar(played.state.server.weights) == pytest.approx(w, abs=1e-6)
        found = [quadratics.scalar(played.state.clients[k].memory["control"]) for k in (0, 1)]
        assert found == pytest.approx(own, abs=1e-5)
        assert quadratics.scalar(control(played.state.server)) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("train", [{"lr": 0.2}, {"lr": 0.1, "momentum": 0.5}], ids=str)
def test_it_converges_to_the_true_optimum_where_fedavg_does_not(train):
    found = quadratics.play(scaffold(), Client(), 40, **train)[-1].state.server.weights
    fedavg = quadratics.play(UNIFORM, Supervised(), 40, **train)[-1].state.server.weights
    assert quadratics.scalar(found) == pytest.approx(2, abs=1e-3)
    assert abs(quadratics.scalar(fedavg) - 2) > 0.05


# Invariants


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_round_1_is_fedavg_to_the_bit(make, weighting):
    problem = tiny.problem(make, train=replace(tiny.TRAIN, momentum=0.5))
    ours, theirs = (tiny.site(half, problem) for half in (Client(), Supervised()))
    fedavg = FedAvg(FedAvg.Config(weighting=weighting))
    (one,) = tiny.play(tiny.experiment(scaffold(weighting=weighting), ours), tiny.FakeEngine(ours))
    (other,) = tiny.play(tiny.experiment(fedavg, theirs), tiny.FakeEngine(theirs))
    tiny.assert_same_weights(one.state.server.weights, other.state.server.weights)
    assert one.row["terms"]["correction"] == 0


def test_without_correction_it_is_fedavg_to_the_bit_in_every_round(problem):
    ours, theirs = (tiny.site(half, problem) for half in (Client(Client.Config(correction=0)), Supervised()))
    mine = tiny.play(tiny.experiment(scaffold(), ours), tiny.FakeEngine(ours), count=3)
    theirs_ = tiny.play(tiny.experiment(UNIFORM, theirs), tiny.FakeEngine(theirs), count=3)
    for one, other in zip(mine, theirs_, strict=True):
        tiny.assert_same_weights(one.state.server.weights, other.state.server.weights)


def test_with_the_correction_the_second_round_is_not_fedavg(problem):
    ours, theirs = (tiny.site(half, problem) for half in (Client(), Supervised()))
    mine = tiny.play(tiny.experiment(scaffold(), ours), tiny.FakeEngine(ours), count=2)
    fedavg = tiny.play(tiny.experiment(UNIFORM, theirs), tiny.FakeEngine(theirs), count=2)
    with pytest.raises(AssertionError, match="entries differ"):
        tiny.assert_same_weights(mine[1].state.server.weights, fedavg[1].state.server.weights)


@pytest.mark.parametrize("per_round", [None, 2])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_c_is_the_mean_of_all_clients_variates_under_any_participation(problem, weighting, per_round):
    """Of those never drawn it is 0. Where sizes count, each is scaled by its share of the data."""
    site = tiny.site(Client(), problem)
    experiment = tiny.experiment(scaffold(weighting=weighting), site, clients_per_round=per_round)
    for played in tiny.play(experiment, tiny.FakeEngine(site), count=4):
        server, heard = played.state.server, sorted(played.state.clients)
        sizes = {k: len(site.train_index[k]) for k in heard}
        scale = {k: sizes[k] * len(heard) / sum(sizes.values()) if weighting == "examples" else 1.0 for k in heard}
        sent = scaffold(weighting=weighting).plan(server, Cohort((0,), 9))[0].reference
        for name, c in sent.items():
            mean = sum(scale[k] * played.state.clients[k].memory["control"][name] for k in heard) / 3
            assert_close(c, mean, rtol=1e-4, atol=1e-6)


def whole(problem):
    """Every step is a full batch of each client."""
    return replace(problem, train=TrainConfig(batch=64, steps=1, lr=0.2))


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("variate", ["path", "gradient"])
def test_one_full_batch_step_each_is_one_centralised_step(problem, weighting, variate):
    """In every round: the corrections of all clients add up to nothing."""
    problem = whole(problem)
    ours, theirs = (tiny.site(h, problem) for h in (Client(Client.Config(variate=variate)), Supervised()))
    fedavg = FedAvg(FedAvg.Config(weighting=weighting))  # one full-batch step each is a centralised step
    mine = tiny.play(tiny.experiment(scaffold(weighting=weighting), ours), tiny.FakeEngine(ours), count=4)
    fed = tiny.play(tiny.experiment(fedavg, theirs), tiny.FakeEngine(theirs), count=4)
    assert_close(dict(mine[-1].state.server.weights), dict(fed[-1].state.server.weights), rtol=1e-4, atol=1e-6)


def test_equal_clients_are_not_corrected(problem):
    """Each one's variate is everybody's: plain SGD."""
    problem = whole(replace(problem, clients=2))
    site = tiny.site(Client(), problem, sizes=(9, 9))
    site = replace(site, train_index={0: site.train_index[0], 1: site.train_index[0]})
    for played in tiny.play(tiny.experiment(scaffold(), site), tiny.FakeEngine(site), count=3):
        c, own = control(played.state.server), played.state.clients
        for name in c:
            assert_close(own[0].memory["control"][name], c[name], rtol=1e-4, atol=1e-6)
        assert played.row["terms"]["correction"] == pytest.approx(0, abs=1e-8)


def test_statistics_have_no_variate_and_are_averaged():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(Client(), problem)
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(scaffold(server_lr=0.5), site), engine, count=2)
    assert set(played[-1].state.server.total) == set(problem.initial().learnable)
    for client, state in played[-1].state.clients.items():
        assert set(state.memory["control"]) == set(problem.initial().learnable), client


def reply(client, value, change, size=1):
    return tiny.reply(
        client,
        {"w": torch.tensor([value])},
        size,
        payload=Payload(
            weights={"w": torch.tensor([value]), "n.running_mean": torch.tensor([value])},
            reference={"w": torch.tensor([change])},
        ),
    )


def some_state(clients=4):
    from strategies.scaffold import State

    weights = {"w": torch.tensor([1.0]), "n.running_mean": torch.tensor([1.0])}
    return State(weights, {"w": torch.tensor([0.0])}, {}, clients)


def test_the_divisor_of_c_is_the_number_of_all_clients_not_of_the_cohort():
    after, _ = scaffold().aggregate(some_state(), [reply(0, 2.0, 6.0), reply(2, 4.0, 2.0)], seeds.stream(0, "t"))
    assert float(scaffold().plan(after, Cohort((0,), 2))[0].reference["w"]) == 2.0
    assert float(after.weights["w"]) == 3.0


def test_the_server_rate_scales_the_update_but_not_the_statistics():
    after, _ = scaffold(server_lr=0.5).aggregate(some_state(), [reply(0, 3.0, 0.0)], seeds.stream(0, "t"))
    assert float(after.weights["w"]) == 2.0
    assert float(after.weights["n.running_mean"]) == 3.0


def test_sizes_weigh_the_mean_and_the_variates_and_are_told_once_known():
    by_size = scaffold(weighting="examples")
    assert by_size.plan(some_state(), Cohort((0,), 1))[0].numbers is None
    after, _ = by_size.aggregate(some_state(), [reply(0, 2.0, 6.0, 1), reply(2, 4.0, 2.0, 3)], seeds.stream(0, "t"))
    payload = by_size.plan(after, Cohort((0,), 2))[0]
    assert float(after.weights["w"]) == 3.5
    assert payload.numbers == {"mean_size": 2.0}
    assert float(payload.reference["w"]) == pytest.approx((0.5 * 6 + 1.5 * 2) / 4)
    assert scaffold().plan(after, Cohort((0,), 2))[0].numbers is None


def test_twice_fedavgs_bytes_travel_both_ways(site, problem):
    ours = replace(site, client=Client())
    row = tiny.play(tiny.experiment(scaffold(), ours), tiny.FakeEngine(ours))[0].row
    entries = 4 * sum(value.numel() for value in problem.initial().weights.values())
    assert row["bytes"]["down"] == {"weights": 3 * entries, "reference": 3 * entries}
    assert row["bytes"]["up"] == {"weights": 3 * entries, "reference": 3 * entries}


@pytest.mark.parametrize(
    ("train", "what"), [({"optimiser": "adam"}, "optimiser = adam"), ({"nesterov": True}, "nesterov is true")]
)
def test_steps_that_hide_the_gradient_are_refused(train, what):
    problem = tiny.problem(train=replace(tiny.TRAIN, **train))
    with pytest.raises(ConfigError, match=what):
        scaffold().init(problem, seeds.stream(0, "server"))
