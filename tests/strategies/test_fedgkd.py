"""FedGKD's server half: its buffer (docs/strategies/fedgkd.md, equation 1)."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.fedgkd import FedGKD as Client
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.strategy import Cohort
from strategies import fedgkd
from strategies.fedavg import FedAvg
from strategies.fedgkd import FedGKD


def strategy(buffer):
    return FedGKD(FedGKD.Config(buffer=buffer))


def play(problem, buffer, count, client=None):
    site = tiny.site(client or Client(), problem)
    return tiny.play(tiny.experiment(strategy(buffer), site), tiny.FakeEngine(site), count=count)


@pytest.mark.parametrize("buffer", [1, 2, 5])
def test_the_teacher_is_the_mean_of_the_last_global_students(problem, buffer):
    played = play(problem, buffer, 4)
    seen = [problem.initial().weights, *(p.state.server.weights for p in played)][-buffer:]
    sent = strategy(buffer).plan(played[-1].state.server, Cohort((0,), 5))[0].reference
    if buffer == 1:
        assert sent is None, "clients have it already"
        return
    for name, value in sent.items():
        assert_close(value, torch.stack([weights[name] for weights in seen]).mean(0))


def test_no_second_set_of_entries_travels_in_the_first_round(problem):
    first = FedGKD().plan(FedGKD().init(problem, seeds.stream(0, "server")), Cohort((0,), 1))[0]
    assert first.kinds() == {"weights"}


def test_the_mean_of_equal_students_is_the_student_to_the_bit(problem):
    weights = problem.initial().weights
    for copies in (2, 3, 5, 7):
        past = {name: value.expand(copies - 1, *value.shape) for name, value in weights.items()}
        tiny.assert_same_weights(fedgkd.teacher(fedgkd.State(weights, past)), weights)


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_zero_gamma_is_fedavg_to_the_bit(make):
    problem = tiny.problem(make)
    mine = play(problem, 3, 3, Client(Client.Config(gamma=0.0)))
    site = tiny.site(Supervised(), problem)
    theirs = tiny.play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site), count=3)
    for one, other in zip(mine, theirs, strict=True):
        tiny.assert_same_weights(one.state.server.weights, other.state.server.weights)


def test_statistics_of_the_past_are_not_kept():
    problem = tiny.problem(tiny.normed)
    played = play(problem, 3, 2)
    assert set(played[-1].state.server.past) == set(problem.initial().learnable)


def test_bytes_down_double_once_a_teacher_travels(problem):
    first, second = play(problem, 2, 2)
    once = 3 * 4 * sum(value.numel() for value in problem.initial().weights.values())
    assert first.row["bytes"]["down"] == {"weights": once}
    assert second.row["bytes"]["down"] == {"weights": once, "reference": once}
    assert second.row["bytes"]["up"] == {"weights": once}
