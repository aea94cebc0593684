"""Views of a teacher: invariants (docs/parts.md)."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.extra import numpy as np_st
from torch.testing import assert_close

from fedkd import config
from fedkd.errors import ConfigError
from fedkd.parts import teacher

KINDS = ["full", "ls", "class", "sim", "instance", "topk"]


@st.composite
def st_said(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (S, C) and labels."""
    samples, classes = draw(st.integers(1, 6)), draw(st.integers(2, 6))
    logits = draw(np_st.arrays("float32", (samples, classes), elements=st.floats(-20, 20, width=32)))
    y = draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples))
    return torch.from_numpy(logits).softmax(1), torch.tensor(y)


def head(classes: int) -> torch.Tensor:
    return torch.linspace(-1, 1, classes * 3).view(classes, 3)


@pytest.mark.parametrize("kind", KINDS)
@given(said=st_said(), topk=st.integers(1, 7))
def test_rows_are_distributions(kind, said, topk):
    p, y = said
    found = teacher.view(kind, p, y, topk=topk, head_Cd=head(p.shape[1]))
    assert found.shape == p.shape
    assert (found >= 0).all()
    assert_close(found.sum(1), torch.ones(len(y)), atol=1e-5, rtol=0)


def test_full_keeps_everything():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    assert teacher.view("full", p, torch.tensor([0])) is p


def test_a_sure_teacher_smooths_nothing():
    y = torch.tensor([1, 0])
    assert torch.equal(teacher.view("ls", torch.eye(3)[y], y), torch.eye(3)[y])
    assert_close(teacher.smoothed(y, 0.3, 3)[0], torch.tensor([0.1, 0.8, 0.1]))


def test_smoothing_is_as_strong_as_the_teacher_is_unsure():
    p, y = torch.tensor([[0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 1])  # mean probability of the label 0.7
    assert_close(teacher.view("ls", p, y), torch.tensor([[0.85, 0.15], [0.15, 0.85]]))


def test_class_is_the_mean_by_label():
    p, y = torch.tensor([[0.6, 0.4], [0.8, 0.2], [0.1, 0.9]]), torch.tensor([0, 0, 1])
    assert_close(teacher.view("class", p, y), torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.1, 0.9]]))


@given(said=st_said())
def test_instance_keeps_the_confidence_and_no_relation(said):
    p, y = said
    found = teacher.view("instance", p, y)
    rows = torch.arange(len(y))
    assert torch.equal(found[rows, y], p[rows, y])
    others = found[F.one_hot(y, p.shape[1]) == 0].view(len(y), -1)
    assert torch.equal(others, others[:, :1].expand_as(others))


@given(said=st_said())
def test_with_two_classes_instance_is_full(said):
    p = said[0][:, :2] / said[0][:, :2].sum(1, keepdim=True).clamp(min=1e-12)
    p[:, 1] = 1 - p[:, 0]
    y = said[1] % 2
    assert_close(teacher.view("instance", p, y), p, atol=1e-6, rtol=0)


def test_the_target_of_instance_scales_the_gradient_of_plain_training():
    """Golden: the ratio at the label is (p_y - q_y) / (1 - q_y)."""
    s, y, p = torch.tensor([[0.3, -0.2, 0.5]], requires_grad=True), torch.tensor([2]), torch.tensor([[0.2, 0.1, 0.7]])
    target, q_y = teacher.view("instance", p, y), float(s.detach().softmax(1)[0, 2])
    (soft,) = torch.autograd.grad(-(target * s.log_softmax(1)).sum(), s)
    (hard,) = torch.autograd.grad(F.cross_entropy(s, y), s)
    assert float(soft[0, 2] / hard[0, 2]) == pytest.approx((0.7 - q_y) / (1 - q_y), rel=1e-5)


@given(said=st_said())
def test_all_of_the_labels_are_full(said):
    p, y = said
    assert torch.equal(teacher.view("topk", p, y, topk=p.shape[1]), p)


def test_topk_keeps_the_largest_and_levels_the_rest():
    p, y = torch.tensor([[0.5, 0.3, 0.15, 0.05]]), torch.tensor([0])
    assert_close(teacher.view("topk", p, y, topk=2), torch.tensor([[0.5, 0.3, 0.1, 0.1]]))
    assert_close(teacher.view("topk", p, y)[0], torch.tensor([0.5, *[0.5 / 3] * 3]))  # a quarter of four classes


def test_similar_labels_get_more():
    head = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    found = teacher.similar(head)
    assert found[0, 0] > 0.7
    assert found[0, 1] > found[0, 2]


def test_a_view_has_no_logits_to_compare():
    for divergence in ("l1", "mse"):
        teacher.Teacher(config.TeacherPart(divergence=divergence)).check(None)
        with pytest.raises(ConfigError, match="compares logits"):
            teacher.Teacher(config.TeacherPart(divergence=divergence, view="topk")).check(None)
