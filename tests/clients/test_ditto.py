"""Ditto's client half: invariants (docs/strategies/ditto.md, equations 1 and 2)."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from clients.ditto import Ditto
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training.optimisers import Sgd

ADAM = replace(tiny.TRAIN, optimiser="adam", lr=0.01, moments="keep")


def ditto(pull: float) -> Ditto:
    return Ditto(Ditto.Config(pull=pull))


def participations(client, problem, payloads, count: int = 3):
    """Replies of client 0 in as many rounds, its state going from one to the next."""
    site, state, found = tiny.site(client, problem), ClientState(), []
    for number in range(1, count + 1):
        job = tiny.job(problem, round=number, state=state, payload=payloads[number - 1])
        found.append(tiny.fit(client, job, site))
        state = found[-1].state
    return found


def others(problem, count: int = 3):
    """Weights that come down, different ones in each round."""
    first = problem.initial().weights
    return [Payload(weights={n: v + 0.01 * k for n, v in first.items()}) for k in range(count)]


@pytest.mark.parametrize("train", [tiny.TRAIN, replace(tiny.TRAIN, momentum=0.9, weight_decay=0.1), ADAM])
@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_without_pull_the_own_student_is_trained_as_if_alone(make, train):
    problem = tiny.problem(make, train=train)
    ours = participations(ditto(0.0), problem, others(problem))
    alone = participations(Supervised(), problem, [Payload()] * 3)
    for mine, its in zip(ours, alone, strict=True):
        tiny.assert_same_weights(mine.state.kept, its.state.kept)
        assert mine.numbers["ce"] == its.numbers["ce"]


@pytest.mark.parametrize("train", [tiny.TRAIN, replace(tiny.TRAIN, momentum=0.9, clip=0.5), ADAM])
def test_what_goes_up_is_fedavgs_whatever_the_pull(train):
    problem = tiny.problem(tiny.normed, train=train)
    theirs = participations(Supervised(), problem, others(problem))
    for pull in (0.0, 3.0):
        for mine, its in zip(participations(ditto(pull), problem, others(problem)), theirs, strict=True):
            tiny.assert_same_weights(mine, its)
            assert (mine.num_examples, mine.state.position) == (its.num_examples, its.state.position)
            tiny.assert_same(tiny.canonical(mine.state.optimiser), tiny.canonical(its.state.optimiser))


def test_both_students_see_the_same_batches(problem, job):
    """From the same start and without pull they end at the same weights."""
    found = tiny.fit(ditto(0.0), job, tiny.site(ditto(0.0), problem))
    tiny.assert_same_weights(found.state.kept, found)


def test_the_pull_is_to_the_weights_as_received(job):
    """Not as trained: at the first step of the first participation there is none."""
    problem = tiny.problem(train=replace(tiny.TRAIN, steps=1))
    found = tiny.fit(ditto(7.0), job, tiny.site(ditto(7.0), problem))
    assert found.numbers["proximal"] == 0
    tiny.assert_same_weights(found.state.kept, found)


def test_a_pull_of_one_over_lr_puts_it_one_step_from_the_received_weights():
    """v - lr (grad + (v - w) / lr) = w - lr grad, with the gradient at v."""
    problem = tiny.problem(train=replace(tiny.TRAIN, steps=1))
    own = {n: v + 0.3 for n, v in problem.initial().weights.items()}
    site, state = tiny.site(ditto(10.0), problem), ClientState(kept=own)
    found = tiny.fit(ditto(10.0), tiny.job(problem, state=state), site)
    alone = tiny.fit(Supervised(), tiny.job(problem, state=state, payload=Payload()), site)
    received = problem.initial().weights
    expected = {n: received[n] + (alone.state.kept[n] - own[n]) for n in own}
    assert_close(dict(found.state.kept), expected, rtol=0, atol=1e-6)


def test_a_larger_pull_keeps_it_closer_to_the_received_weights(problem, job):
    def distance(pull: float) -> float:
        kept = tiny.fit(ditto(pull), job, tiny.site(ditto(pull), problem)).state.kept
        return sum(float((kept[n] - sent).square().sum()) for n, sent in job.payload.weights.items())

    distances = [distance(pull) for pull in (0.0, 0.1, 1.0, 5.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.8 * distances[0]


def test_statistics_are_its_own_and_are_not_pulled():
    problem = tiny.problem(tiny.normed)
    site, job = tiny.site(ditto(1.0), problem), tiny.job(problem)
    far = {n: v + 100 if ".running_" in n else v for n, v in job.payload.weights.items()}
    student = problem.initial().load(far)
    terms = dict(ditto(1.0).terms(student, Batch(*site.train.take(torch.arange(4)), 0, 4), job))
    assert float(terms["proximal"].detach()) == 0
    found = tiny.fit(ditto(1.0), replace(job, payload=Payload(weights=far)), site)
    assert found.state.kept["conv.1.running_mean"].abs().max() < 10 < found.payload.weights["conv.1.running_mean"].max()


def test_the_weight_of_the_pull_is_not_computed_where_it_is_zero(problem, job):
    site = tiny.site(ditto(0.0), problem)
    assert set(tiny.fit(ditto(0.0), job, site).numbers) == {"ce", "received"}
    assert set(tiny.fit(ditto(0.5), job, site).numbers) == {"ce", "proximal", "received"}


class Scalar(nn.Module):
    """A parameter that the logits do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("pull", "expected"), [(0.0, (0.729, 1.976)), (1.0, (0.756, 1.876))])
def test_two_scalar_clients_reach_the_golden_weights(pull, expected, problem):
    """Golden: tests/quadratics.py. In the first round Ditto's own student is FedProx's: it starts at what came down."""
    job = tiny.job(problem, payload=Payload(weights={"scalar.w": torch.tensor([1.0])}))
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 0, 1)
    for a, b, goal in ((1, 0, expected[0]), (2, 3, expected[1])):
        student = Student(OrderedDict(scalar=Scalar(), head=nn.Linear(1, 2)))
        w = student.learnable["scalar.w"]
        sgd = Sgd([w], 0.1)
        for _ in range(3):
            towards = dict(ditto(pull).terms(student, batch, job)).get("proximal", 0.0)
            loss = 0.5 * a * (w - b).square().sum() + towards
            sgd.step(torch.autograd.grad(loss, [w]))
        assert w.item() == pytest.approx(goal, abs=1e-6)
