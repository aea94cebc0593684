"""Divergences: invariants, and values checked by hand."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as np_st
from torch.testing import assert_close

from fedkd.maths import divergences


def of_logits(kind):
    """A divergence of probabilities, of logits and at a temperature."""

    def divergence(teacher, student, tau=1.0):
        return tau**2 * divergences.between(kind, (teacher / tau).softmax(1), (student / tau).log_softmax(1))

    divergence.__name__ = kind
    return divergence


forward_kl, reverse_kl, js, symmetric = map(of_logits, ("forward_kl", "reverse_kl", "js", "symmetric"))
OF_PROBABILITIES = [forward_kl, reverse_kl, js, symmetric]
ALL = [*OF_PROBABILITIES, divergences.l1, divergences.mse]
every = pytest.mark.parametrize("divergence", ALL, ids=lambda f: f.__name__)
of_probabilities = pytest.mark.parametrize("divergence", OF_PROBABILITIES, ids=lambda f: f.__name__)


def logits(*shape: int) -> st.SearchStrategy[torch.Tensor]:
    return np_st.arrays("float64", shape, elements=st.floats(-8, 8)).map(torch.from_numpy)


@every
@given(teacher=logits(3, 4), student=logits(3, 4), tau=st.floats(0.5, 10))
def test_none_is_negative(divergence, teacher, student, tau):
    assert float(divergence(teacher / tau, student / tau)) >= -1e-9


@every
@given(both=logits(3, 4))
def test_equal_logits_do_not_diverge(divergence, both):
    assert float(divergence(both, both)) == pytest.approx(0, abs=1e-9)


@of_probabilities
@given(both=logits(3, 4), shift=st.floats(-5, 5))
def test_a_constant_on_all_logits_makes_no_difference_to_probabilities(divergence, both, shift):
    assert float(divergence(both, both + shift)) == pytest.approx(0, abs=1e-9)


@every
def test_other_logits_diverge(divergence):
    teacher, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(divergence(teacher, student)) > 0.01


@pytest.mark.parametrize("divergence", [divergences.l1, divergences.mse], ids=lambda f: f.__name__)
def test_a_constant_on_all_logits_counts_where_logits_are_compared(divergence):
    assert float(divergence(torch.zeros(2, 3), torch.ones(2, 3))) == 1


@given(teacher=logits(3, 4), student=logits(3, 4))
def test_js_is_symmetric_and_at_most_ln_2(teacher, student):
    one, other = js(teacher, student), js(student, teacher)
    assert_close(one, other, atol=1e-9, rtol=0)
    assert float(one) <= math.log(2) + 1e-9


@given(teacher=logits(3, 4), student=logits(3, 4))
def test_the_kls_are_each_others_mirror_and_symmetric_is_their_mean(teacher, student):
    forward, reverse = forward_kl(teacher, student), reverse_kl(teacher, student)
    assert_close(reverse, forward_kl(student, teacher), atol=1e-8, rtol=1e-6)
    assert_close(symmetric(teacher, student), (forward + reverse) / 2)


def test_at_a_high_temperature_kl_is_half_the_mean_squared_difference():
    teacher, student = torch.tensor([[1.0, -1.0, 0.0]]).double(), torch.tensor([[-2.0, 1.0, 1.0]]).double()
    limit = divergences.mse(teacher, student) / 2
    assert float(forward_kl(teacher, student, 100)) == pytest.approx(float(limit), rel=0.01)


def test_kl_by_hand():
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(forward_kl(teacher, student)) == pytest.approx(expected, abs=1e-6)


def test_a_teacher_that_excludes_a_label_gives_a_finite_number_and_gradient():
    certain, student = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2, requires_grad=True)
    for kind in ("forward_kl", "reverse_kl", "js", "symmetric"):
        value = divergences.between(kind, certain, student.log_softmax(1))
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_the_gradient_of_forward_kl_is_the_difference_of_probabilities():
    teacher, student = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 0.2, 0.1]], requires_grad=True)
    (gradient,) = torch.autograd.grad(forward_kl(teacher, student), student)
    assert_close(gradient, student.softmax(1).detach() - teacher.softmax(1))
