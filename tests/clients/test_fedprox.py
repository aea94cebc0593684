"""FedProx's client half: invariants (docs/strategies/fedprox.md, equation 1)."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from clients.fedprox import FedProx
from clients.supervised import Supervised
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training.optimisers import Sgd


def fedprox(mu: float = 0.0, decay: float = 0.0) -> FedProx:
    return FedProx(FedProx.Config(mu=mu, decay=decay))


def test_zero_mu_is_fedavg(site, job):
    tiny.assert_same(tiny.lasting(tiny.fit(fedprox(), job, site)), tiny.lasting(tiny.fit(Supervised(), job, site)))


def test_a_weight_of_zero_is_not_computed(site, job):
    assert set(tiny.fit(fedprox(), job, site).numbers) == {"ce"}
    assert set(tiny.fit(fedprox(mu=1.0), job, site).numbers) == {"ce", "proximal"}
    assert set(tiny.fit(fedprox(decay=0.1), job, site).numbers) == {"ce", "decay"}


def test_the_first_step_of_a_participation_feels_no_pull(job):
    site = tiny.site(Supervised(), tiny.problem(train=replace(tiny.TRAIN, steps=1)))
    found = tiny.fit(fedprox(mu=10.0), job, site)
    tiny.assert_same_weights(found, tiny.fit(Supervised(), job, site))
    assert found.numbers["proximal"] == 0


def test_the_second_step_feels_it(job):
    site = tiny.site(Supervised(), tiny.problem(train=replace(tiny.TRAIN, steps=2)))
    with pytest.raises(AssertionError, match="entries differ"):
        tiny.assert_same_weights(tiny.fit(fedprox(mu=1.0), job, site), tiny.fit(Supervised(), job, site))


def test_the_pull_is_half_mu_times_the_squared_distance(problem, site, job):
    student = problem.initial().load({"head.bias": job.payload.weights["head.bias"] + 2.0})
    x, y = site.train.take(torch.arange(4))
    terms = dict(fedprox(mu=0.1).terms(student, Batch(x, y, 0, 4), job))
    assert float(terms["proximal"].detach()) == pytest.approx(0.1 * 0.5 * tiny.CLASSES * 4)


def test_a_larger_mu_keeps_closer_to_the_received_weights(site, job):
    def distance(mu: float) -> float:
        found = tiny.fit(fedprox(mu=mu), job, site).payload.weights
        return sum(float((found[n] - sent).square().sum()) for n, sent in job.payload.weights.items())

    distances = [distance(mu) for mu in (0.0, 0.1, 1.0, 5.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.8 * distances[0]


def test_statistics_are_not_pulled():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(Supervised(), problem)
    job = tiny.job(problem)
    far = {n: v + 100 if ".running_" in n else v for n, v in job.payload.weights.items()}
    student = problem.initial().load(far)
    terms = dict(fedprox(mu=1.0).terms(student, Batch(*site.train.take(torch.arange(4)), 0, 4), job))
    assert float(terms["proximal"].detach()) == 0


def test_a_private_extractor_is_not_pulled():
    problem = tiny.problem()
    head = problem.shared(problem.initial().weights, "head")
    job = tiny.job(problem, payload=Payload(weights=head))
    student = problem.initial().load({"hidden.1.bias": torch.full((tiny.LATENT,), 9.0)})
    site = tiny.site(Supervised(), problem)
    terms = dict(fedprox(mu=1.0).terms(student, Batch(*site.train.take(torch.arange(4)), 0, 4), job))
    assert float(terms["proximal"].detach()) == 0


def test_decay_is_plain_weight_decay(job):
    one = tiny.site(Supervised(), tiny.problem())
    other = tiny.site(Supervised(), tiny.problem(train=replace(tiny.TRAIN, weight_decay=0.05)))
    decayed, expected = tiny.fit(fedprox(decay=0.05), job, one), tiny.fit(Supervised(), job, other)
    assert_close(dict(decayed.payload.weights), dict(expected.payload.weights))


class Scalar(nn.Module):
    """A parameter that the logits do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("mu", "expected"), [(0.0, (0.729, 1.976)), (1.0, (0.756, 1.876))])
def test_two_scalar_clients_reach_the_golden_weights(mu, expected, problem):
    """Golden: tests/quadratics.py: the pull is this module's term, the loss a/2 (w - b)^2."""
    job = tiny.job(problem, payload=Payload(weights={"scalar.w": torch.tensor([1.0])}))
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 0, 1)
    for a, b, goal in ((1, 0, expected[0]), (2, 3, expected[1])):
        student = Student(OrderedDict(scalar=Scalar(), head=nn.Linear(1, 2)))
        w = student.learnable["scalar.w"]
        sgd = Sgd([w], 0.1)
        for _ in range(3):
            pull = dict(fedprox(mu).terms(student, batch, job)).get("proximal", 0.0)
            loss = 0.5 * a * (w - b).square().sum() + pull
            sgd.step(torch.autograd.grad(loss, [w]))
        assert w.item() == pytest.approx(goal, abs=1e-6)
