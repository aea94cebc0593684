"""Ditto's server half: invariants (docs/strategies/ditto.md, equation 3)."""

import pytest
import tiny
import torch

from clients.ditto import Ditto as Client
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.strategy import Cohort
from strategies.ditto import Ditto, State
from strategies.fedavg import FedAvg

STREAM = seeds.stream(0, "test")


def played(strategy, client, make=tiny.plain, count: int = 3, **changes):
    site = tiny.site(client, tiny.problem(make, **changes))
    return tiny.play(tiny.experiment(strategy, site, clients_per_round=2), tiny.FakeEngine(site), count)


def ditto(pull: float) -> Client:
    return Client(Client.Config(pull=pull))


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_the_global_trajectory_is_fedavgs_whatever_the_pull(make):
    theirs = played(FedAvg(), Supervised(), make)
    for pull in (0.0, 1.0, 5.0):
        ours = played(Ditto(), ditto(pull), make)
        for mine, its in zip(ours, theirs, strict=True):
            tiny.assert_same_weights(mine.state.server.weights, its.state.server.weights)
            assert mine.row["accuracy"]["global"] == its.row["accuracy"]["global"]
            assert mine.row["bytes"] == its.row["bytes"]
            assert mine.row["terms"]["received"] == its.row["terms"]["ce"]


def test_with_statistics_of_the_clients_own_the_global_entries_are_fedavgs_too():
    ours = played(Ditto(), ditto(2.0), tiny.normed, statistics="local")
    theirs = played(FedAvg(), Supervised(), tiny.normed, statistics="local")
    tiny.assert_same_weights(ours[-1].state.server.weights, theirs[-1].state.server.weights)


def test_clients_use_their_own_student_and_the_global_one_is_served_to_nobody():
    strategy = Ditto()
    state = strategy.init(tiny.problem(tiny.normed), STREAM)
    assert strategy.evaluation_payload(state, 1) is None
    tiny.assert_same_weights(strategy.evaluation_payload(state, None).weights, tiny.problem(tiny.normed).initial())


def test_without_statistics_of_its_own_there_is_no_global_student():
    """Those that the clients keep are of their own students, and do not belong to it."""
    strategy = Ditto()
    state = strategy.init(tiny.problem(tiny.normed, statistics="local"), STREAM)
    assert strategy.evaluation_payload(state, None) is None
    assert strategy.evaluation_payload(strategy.init(tiny.problem(statistics="local"), STREAM), None) is not None


def test_own_test_splits_are_for_the_clients_own_students_and_the_pooled_one_for_the_global():
    site = tiny.site(ditto(0.5), tiny.problem())
    engine = tiny.FakeEngine(site)
    (*_, last) = tiny.play(tiny.experiment(Ditto(), site), engine, 2)
    assert {"clients", "global"} <= set(last.row["accuracy"])
    job = [job for job in engine.jobs if job.task == "evaluate" and job.client == 1][-1]
    tiny.assert_same_weights(site.student(job), last.state.clients[1].kept)


def test_a_client_that_never_trained_has_the_initial_student():
    site = tiny.site(ditto(0.5), tiny.problem())
    engine = tiny.FakeEngine(site)
    (last,) = tiny.play(tiny.experiment(Ditto(), site, clients_per_round=2), engine)
    (absent,) = set(range(3)) - set(last.state.clients)
    (job,) = [job for job in engine.jobs if job.task == "evaluate" and job.client == absent]
    tiny.assert_same_weights(site.student(job), site.problem.initial())


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 1.66425), ("uniform", 1.3525)])
def test_golden_mean_of_two_scalar_clients(weighting, expected):
    """Golden: tests/quadratics.py, n = (1, 3)."""
    replies = [tiny.reply(k, {"w": torch.tensor([w])}, n) for k, (w, n) in enumerate([(0.729, 1), (1.976, 3)])]
    strategy = Ditto(Ditto.Config(weighting=weighting))
    state, _ = strategy.aggregate(State({"w": torch.zeros(1)}, True), replies, STREAM)
    assert float(state.weights["w"]) == pytest.approx(expected, abs=1e-6)


def test_all_clients_receive_one_object(problem):
    payloads = Ditto().plan(Ditto().init(problem, STREAM), Cohort((0, 2), 1))
    assert payloads[0] is payloads[2]
