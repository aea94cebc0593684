"""FedGKD's client half: invariants (docs/strategies/fedgkd.md, equation 2)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.fedgkd import FedGKD
from clients.supervised import Supervised


def client(**changes):
    return FedGKD(FedGKD.Config(**{"first_round": 1, **changes}))


def taught(job, shift=1.0):
    """The job with a teacher of its own."""
    reference = {n: v + shift * torch.arange(v.numel()).view(v.shape) for n, v in job.payload.weights.items()}
    return replace(job, payload=replace(job.payload, reference=reference))


def test_zero_gamma_is_fedavg_to_the_bit_and_asks_no_teacher(site, job, monkeypatch):
    monkeypatch.setattr("fedkd.training.teachers.logits", lambda *_: pytest.fail("asked"))
    off = tiny.fit(client(gamma=0.0), taught(job), site)
    tiny.assert_same(tiny.lasting(off), tiny.lasting(tiny.fit(Supervised(), taught(job), site)))


def test_rounds_before_the_first_are_fedavg(site, job):
    waiting = client(first_round=2)
    tiny.assert_same_weights(tiny.fit(waiting, taught(job), site), tiny.fit(Supervised(), job, site))
    assert set(tiny.fit(waiting, taught(job), site).numbers) == {"ce"}
    assert set(tiny.fit(waiting, replace(taught(job), round=2), site).numbers) == {"ce", "distil"}


@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_without_a_teacher_of_its_own_the_received_student_teaches_and_the_first_step_is_free(problem, job, distance):
    site = tiny.site(client(), replace(problem, train=replace(tiny.TRAIN, steps=1)))
    found = tiny.fit(client(gamma=10.0, distance=distance), job, site)
    assert found.numbers["distil"] == pytest.approx(0, abs=1e-6)
    for name, value in tiny.fit(Supervised(), job, site).payload.weights.items():
        assert_close(found.payload.weights[name], value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gamma": 0.4}, lambda t, u: 0.2 * (t.softmax(1) * (t.log_softmax(1) - u.log_softmax(1))).sum(1).mean()),
        (
            {"gamma": 0.4, "temperature": 2.0},
            lambda t, u: 0.8 * ((t / 2).softmax(1) * ((t / 2).log_softmax(1) - (u / 2).log_softmax(1))).sum(1).mean(),
        ),
        ({"gamma": 0.4, "distance": "mse"}, lambda t, u: 0.2 * (t - u).square().mean()),
    ],
)
def test_the_term_is_half_gamma_times_the_distance_to_the_teacher(problem, job, changes, expected):
    site = tiny.site(client(), replace(problem, train=replace(tiny.TRAIN, steps=1)))
    drawn = site.draw(job)
    teacher = problem.initial().load(taught(job, 0.01).payload.reference)(drawn.x).detach()
    student = problem.initial()(drawn.x).detach()
    found = tiny.fit(client(**changes), taught(job, 0.01), site).numbers["distil"]
    assert found == pytest.approx(float(expected(teacher, student)), rel=1e-4)


def test_the_teachers_statistics_are_the_received_ones():
    """Past models' are not averaged: `reference` has none."""
    problem = tiny.problem(tiny.normed)
    site = tiny.site(client(), problem)
    weights = {n: v + 0.5 if "running" in n else v for n, v in problem.initial().weights.items()}
    reference = {name: weights[name] * 1.1 for name in problem.initial().learnable}
    job = tiny.job(problem, payload=replace(tiny.job(problem).payload, weights=weights, reference=reference))
    drawn = site.draw(job)
    per_sample = client().precompute(site, job, drawn.x, drawn.y, drawn.position)
    expected = problem.initial().load(weights, reference).eval()
    assert_close(per_sample["teacher"], expected(drawn.x).detach())
