"""FedNTD's client half: invariants and golden numbers (docs/strategies/fedntd.md, equation 1)."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from clients import fedntd
from clients.fedntd import FedNTD
from clients.supervised import Supervised
from fedkd.maths import losses
from fedkd.payload import Payload

seeds_of = st.integers(0, 2**31)


def client(beta=1.0, temperature=1.0):
    return FedNTD(FedNTD.Config(beta=beta, temperature=temperature))


def distance(u, reference, y, temperature=1.0):
    return losses.softened_kl(fedntd.not_true(reference, y), fedntd.not_true(u, y), temperature)


def some(seed):
    generator = torch.Generator().manual_seed(seed)
    u, reference = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return u, reference, torch.randint(4, (6,), generator=generator)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.150421), (3.0, 1.309223)])
def test_the_distance_is_golden(temperature, expected):
    """Golden, worked out apart from this code."""
    u, reference = torch.tensor([[2.0, 1, 0, -1]]), torch.tensor([[0.0, 1, 2, 3]])
    assert float(distance(u, reference, torch.tensor([0]), temperature)) == pytest.approx(expected, abs=1e-6)


def test_the_true_class_is_taken_away_and_the_others_keep_their_order():
    logits = torch.arange(12.0).view(3, 4)
    expected = torch.tensor([[1.0, 2, 3], [4, 5, 7], [8, 9, 10]])
    assert torch.equal(fedntd.not_true(logits, torch.tensor([0, 2, 3])), expected)


@given(seeds_of, st.floats(-5, 5))
def test_it_is_zero_where_the_other_logits_differ_by_a_constant(seed, shift):
    u, _, y = some(seed)
    other = u.clone().scatter_add_(1, y[:, None], torch.full((6, 1), 3.0, dtype=u.dtype)) + shift
    assert float(distance(u, other, y)) == pytest.approx(0, abs=1e-12)


@given(seeds_of, st.floats(0.5, 4))
def test_logits_of_the_true_class_have_no_say_and_get_no_gradient(seed, temperature):
    u, reference, y = some(seed)
    lifted = torch.zeros_like(u).scatter_(1, y[:, None], 7.0)
    u.requires_grad_()
    value = distance(u, reference, y, temperature)
    assert_close(distance(u + lifted, reference - lifted, y, temperature), value)
    assert not torch.autograd.grad(value, u)[0].gather(1, y[:, None]).any()


@given(seeds_of)
def test_two_classes_have_nothing_to_tell(seed):
    u, reference, y = some(seed)
    assert float(distance(u[:, :2], reference[:, :2], y % 2)) == 0


def test_zero_beta_is_fedavg_to_the_bit_and_asks_no_teacher(site, job, monkeypatch):
    monkeypatch.setattr("fedkd.training.teachers.logits", lambda *_: pytest.fail("asked"))
    tiny.assert_same(tiny.lasting(tiny.fit(client(0.0), job, site)), tiny.lasting(tiny.fit(Supervised(), job, site)))


def test_the_first_step_of_a_participation_feels_nothing(problem, job):
    """There the student is its own teacher."""
    site = tiny.site(client(), replace(problem, train=replace(tiny.TRAIN, steps=1)))
    found = tiny.fit(client(10.0), job, site)
    assert found.numbers["not_true"] == pytest.approx(0, abs=1e-6)
    for name, value in tiny.fit(Supervised(), job, site).payload.weights.items():
        assert_close(found.payload.weights[name], value)


def test_the_teacher_is_the_received_student_in_eval_mode():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(client(), problem)
    far = {name: value * 1.5 for name, value in problem.initial().weights.items()}
    job = tiny.job(problem, payload=Payload(weights=far))
    drawn = site.draw(job)
    per_sample = client().precompute(site, job, drawn.x, drawn.y, drawn.position)
    assert_close(per_sample["teacher"], problem.initial().load(far).eval()(drawn.x).detach())


def test_a_large_beta_keeps_what_was_known_of_other_classes(problem, job):
    site = tiny.site(client(), replace(problem, train=replace(tiny.TRAIN, steps=30)))
    x, y = site.own(0)
    before = problem.initial()(x).detach()

    def lost(beta):
        student = problem.initial().load(tiny.fit(client(beta), job, site).payload.weights)
        return float(distance(student(x).detach(), before, y))

    assert lost(5.0) < lost(0.5) < lost(0.0)
