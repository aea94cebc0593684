"""MOON's client half: invariants and a golden number (docs/strategies/moon.md, equations 1 to 3)."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from clients import moon
from clients.moon import Moon
from clients.supervised import Supervised
from fedkd.payload import Payload

seeds_of = st.integers(0, 2**31)


def client(mu=1.0, temperature=0.5):
    return Moon(Moon.Config(mu=mu, temperature=temperature))


def latents(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3)]


def later(job, site, mu=1.0):
    """The job of the second round, when others have moved the global student."""
    first = tiny.fit(client(mu), job, site)
    moved = {name: value + 0.1 for name, value in first.payload.weights.items()}
    return replace(job, round=2, payload=Payload(weights=moved), state=first.state)


def test_the_contrast_is_golden():
    """Golden, worked out apart from this code."""
    z, near, far = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 1]]), torch.tensor([[0.0, 1]])
    assert float(moon.contrast(z, near, far, 0.5)) == pytest.approx(0.217622, abs=1e-6)


@given(seeds_of, st.floats(0.1, 2))
def test_equal_references_give_log_2_and_no_gradient(seed, temperature):
    z, reference, _ = latents(seed)
    z.requires_grad_()
    value = moon.contrast(z, reference, reference, temperature)
    assert value.item() == pytest.approx(math.log(2), abs=1e-12)
    assert not torch.autograd.grad(value, z)[0].any()


@given(seeds_of, st.floats(0.01, 100))
def test_the_contrast_does_not_depend_on_the_scale_of_latents(seed, scale):
    z, near, far = latents(seed)
    assert_close(moon.contrast(scale * z, near, far, 0.5), moon.contrast(z, near, far, 0.5))
    assert_close(moon.contrast(z, scale * near, far / scale, 0.5), moon.contrast(z, near, far, 0.5))


@given(seeds_of)
def test_it_is_the_cross_entropy_of_choosing_the_global_latent(seed):
    z, near, far = latents(seed)
    cosine = torch.nn.functional.cosine_similarity
    logits = torch.stack([cosine(z, near), cosine(z, far)], 1) / 0.3
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    assert_close(moon.contrast(z, near, far, 0.3), expected)


def test_zero_mu_is_fedavg_to_the_bit(site, job):
    after = later(job, site)
    tiny.assert_same_weights(tiny.fit(client(0.0), after, site), tiny.fit(Supervised(), after, site))
    assert set(tiny.fit(client(0.0), after, site).numbers) == {"ce"}
    with pytest.raises(AssertionError, match="entries differ"):
        tiny.assert_same_weights(tiny.fit(client(), after, site), tiny.fit(Supervised(), after, site))


def test_zero_mu_asks_no_teacher(site, job, monkeypatch):
    monkeypatch.setattr("fedkd.training.teachers.latents", lambda *_: pytest.fail("asked"))
    tiny.fit(client(0.0), job, site)


def test_in_a_first_participation_both_references_are_the_global_student(site, job):
    found = tiny.fit(client(), job, site)
    assert found.numbers["contrast"] == pytest.approx(math.log(2), abs=1e-6)
    tiny.assert_same_weights(found, tiny.fit(Supervised(), job, site))


def test_the_previous_student_is_the_one_of_the_last_participation(site, job):
    first = tiny.fit(client(), job, site)
    tiny.assert_same_weights(first.state.memory["previous"], first.payload.weights)
    second = tiny.fit(client(), later(job, site), site)
    tiny.assert_same_weights(second.state.memory["previous"], second.payload.weights)


def test_references_are_of_the_frozen_students_in_eval_mode():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(client(), problem)
    job = later(tiny.job(problem), site)
    drawn = site.draw(job)
    per_sample = client().precompute(site, job, drawn.x, drawn.y, drawn.position)
    for name, weights in (("z_global", job.payload.weights), ("z_previous", job.state.memory["previous"])):
        student = problem.initial().load(weights).eval()
        assert_close(per_sample[name], student.features(drawn.x).detach())


def test_statistics_that_stay_with_the_client_are_its_previous_students_and_its_global_ones():
    """The client's view of the global student has its own statistics, as when it is evaluated."""
    problem = tiny.problem(tiny.normed, statistics="local")
    site = tiny.site(client(), problem)
    job = later(tiny.job(problem), site)
    drawn = site.draw(job)
    per_sample = client().precompute(site, job, drawn.x, drawn.y, drawn.position)
    student = problem.initial().load(job.state.kept, job.payload.weights).eval()
    assert set(job.state.kept) == set(problem.statistic_names) <= set(job.state.memory["previous"])
    assert_close(per_sample["z_global"], student.features(drawn.x).detach())


def test_training_draws_latents_to_the_global_student(problem):
    """A large mu: nearer to the global latents, further from the previous ones, than without."""
    site = tiny.site(client(), replace(problem, train=replace(tiny.TRAIN, steps=40, lr=0.05)))
    job = later(tiny.job(problem), site)
    drawn = site.draw(job)
    per_sample = client().precompute(site, job, drawn.x, drawn.y, drawn.position)

    def distance(mu):
        student = problem.initial().load(tiny.fit(client(mu), job, site).payload.weights)
        z = student.features(drawn.x).detach()
        return float(moon.contrast(z, per_sample["z_global"], per_sample["z_previous"], 0.5))

    assert distance(5.0) < distance(0.0)
