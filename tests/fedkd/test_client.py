"""The base of client halves: what they do where an algorithm says nothing."""

import dataclasses

import pytest
import tiny
import torch

from fedkd import seeds
from fedkd.client import Client
from fedkd.participation import Batch, Trained
from fedkd.payload import Payload


@pytest.fixture
def trained(problem, site):
    student = problem.initial().load({"head.bias": torch.full((tiny.CLASSES,), 5.0)})
    return Trained(student, torch.ones(tiny.CLASSES, dtype=torch.int64), 10, {"memory": 1}, site, 3, 0.1)


def test_entries_that_came_down_go_up_as_trained(trained, job):
    tiny.assert_same_weights(Client().report(trained, job).weights, trained.student.weights)


def test_entries_that_did_not_come_down_stay(trained, problem):
    head = problem.shared(problem.initial().weights, "head")
    sent = Client().report(trained, tiny.job(problem, payload=Payload(weights=head)))
    assert list(sent.weights) == ["head.weight", "head.bias"]
    assert sent.weights["head.bias"].tolist() == [5, 5, 5]


def test_where_no_weights_came_none_go_up(trained, problem):
    assert Client().report(trained, tiny.job(problem, payload=Payload())).kinds() == frozenset()


def test_a_report_shares_no_memory_with_the_student(trained, job):
    sent = Client().report(trained, job).weights
    trained.student.load({"head.bias": torch.zeros(tiny.CLASSES)})
    assert sent["head.bias"].tolist() == [5, 5, 5]


def test_a_client_that_remembers_nothing_draws_nothing_and_has_no_loss(trained, problem, job):
    client = Client()
    assert client.init(problem, seeds.stream(0, "x")) == {}
    assert client.draw(job, torch.zeros(2), 0, torch.Generator()) == {}
    assert client.next_memory(trained, job) == trained.memory
    with pytest.raises(NotImplementedError):
        client.terms(trained.student, Batch(torch.zeros(1), torch.zeros(1), 0, 4), job)


def test_a_client_takes_its_defaults_where_no_config_is_given():
    class Tuned(Client):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config(Client.Config):
            mu: float = 0.5

    assert Tuned().config == Tuned.Config(mu=0.5)
    assert Tuned(Tuned.Config(mu=1.0)).config.mu == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tuned().config.mu = 2.0
