"""FedDyn's client half: pull, tilt and what is remembered (docs/strategies/feddyn.md, equations 1 to 3)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.feddyn import FedDyn, anchored
from clients.fedprox import FedProx
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.participation import Batch


def feddyn(alpha=0.1):
    return FedDyn(FedDyn.Config(alpha=alpha))


def again(job, moved=0.5):
    """The job of a client that has moved by the same everywhere."""
    memory = {"moved": {name: torch.full_like(v, moved) for name, v in job.payload.weights.items()}}
    return replace(job, state=ClientState(memory=memory))


def test_zero_alpha_is_supervised_training(site, job):
    tiny.assert_same_weights(tiny.fit(feddyn(0.0), again(job), site), tiny.fit(Supervised(), job, site))
    assert set(tiny.fit(feddyn(0.0), again(job), site).numbers) == {"ce"}


def test_a_first_participation_is_fedprox_with_mu_alpha(site, job):
    """The square is of the distance, halved: not its norm."""
    found = tiny.fit(feddyn(0.3), job, site)
    tiny.assert_same_weights(found, tiny.fit(FedProx(FedProx.Config(mu=0.3)), job, site))
    assert set(found.numbers) == {"ce", "proximal"}


def test_the_gradient_of_tilt_and_pull_is_alpha_times_moved_plus_distance(problem, site, job):
    student = problem.initial().load({name: value + 2.0 for name, value in job.payload.weights.items()})
    terms = dict(feddyn(0.3).terms(student, Batch(*site.train.take(torch.arange(4)), 0, 4), anchored(again(job))))
    names = list(student.learnable)
    gradients = torch.autograd.grad(terms["proximal"], [student.learnable[n] for n in names])
    for gradient in gradients:
        assert_close(gradient, torch.full_like(gradient, 0.3 * (0.5 + 2.0)))


def test_what_a_client_has_moved_adds_up(site, job):
    first = tiny.fit(feddyn(), job, site)
    second = tiny.fit(feddyn(), replace(job, round=2, state=first.state), site)
    for name, moved in second.state.memory["moved"].items():
        start = job.payload.weights[name]
        expected = (first.payload.weights[name] - start) + (second.payload.weights[name] - start)
        assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_statistics_are_neither_pulled_nor_tilted():
    problem = tiny.problem(tiny.normed)
    found = tiny.fit(feddyn(), tiny.job(problem), tiny.site(feddyn(), problem))
    assert set(found.state.memory["moved"]) == set(problem.initial().learnable)


def test_a_client_with_twice_the_mean_of_samples_feels_half_of_alpha(site, job):
    """omega_k = 20 / 10 for client 0."""
    told = replace(job, payload=replace(job.payload, numbers={"mean_size": 10.0}))
    tiny.assert_same_weights(tiny.fit(feddyn(0.4), again(told), site), tiny.fit(feddyn(0.2), again(job), site))
    with pytest.raises(AssertionError, match="entries differ"):
        tiny.assert_same_weights(tiny.fit(feddyn(0.4), again(told), site), tiny.fit(feddyn(0.4), again(job), site))
