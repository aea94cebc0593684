"""Partial mixup: invariants (docs/parts.md)."""

import hypothesis.strategies as st
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from torch.testing import assert_close

from fedkd import config
from fedkd.participation import Batch
from fedkd.parts import mixup
from fedkd.parts.part import Seen


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@given(size=st.integers(2, 40), fraction=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_the_share_of_mixed_rows_is_exact(size, fraction, seed):
    rows = mixup.mixed_rows(size, fraction, rng(seed))
    assert len(rows) == max(1, round(fraction * size))
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(range(size))


def test_the_reference_mixes_about_41_percent_of_what_it_says_are_10():
    counts = [len(mixup.mixed_rows(64, 0.1, rng(seed), "reference")) for seed in range(200)]
    assert np.mean(counts) / 64 == pytest.approx((1 - 1 / 64) ** int(0.9 * 64), abs=0.01)


def test_a_single_image_has_no_partner():
    assert not len(mixup.mixed_rows(1, 1.0, rng()))
    assert mixup.Mixup(config.MixupPart()).draw(1, rng()) == {}


@given(seed=st.integers(0, 99), beta=st.floats(0.1, 5))
def test_mixtures_stay_between_what_they_are_made_of(seed, beta):
    drawn = list(mixup.Mixup(config.MixupPart(fraction=1.0, beta=beta)).draw(6, rng(seed)).values())
    x, y = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(seed)), torch.arange(6) % 3
    mixed, labels = mixup.mix(x, y, *drawn, 3)
    assert_close(labels.sum(1), torch.ones(6))
    assert (labels >= 0).all()
    ends = torch.stack([x[drawn[0]], x[drawn[1]]])
    assert (mixed >= ends.amin(0) - 1e-6).all()
    assert (mixed <= ends.amax(0) + 1e-6).all()


def test_a_mixture_by_hand():
    x, y = torch.tensor([0.0, 10.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
    mixed, labels = mixup.mix(x, y, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.75]), 2)
    assert mixed.item() == 2.5
    assert labels.tolist() == [[0.75, 0.25]]


@given(factor=st.floats(0.1, 100), seed=st.integers(0, 9))
def test_a_positive_factor_of_all_logits_is_gone(factor, seed):
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    assert_close(mixup.scale(factor * logits), mixup.scale(logits), atol=1e-5, rtol=1e-4)


def test_logits_that_are_all_alike_and_a_single_class_stay_finite():
    assert torch.equal(mixup.scale(torch.ones(2, 3)).softmax(1), torch.full((2, 3), 1 / 3))
    assert torch.equal(mixup.scale(torch.ones(2, 1)), torch.ones(2, 1))


def seen(told: torch.Tensor | None, **keys: float) -> dict[str, torch.Tensor]:
    """The terms on a batch whose first image is mixed with its second, half and half."""
    student = tiny.problem().initial()
    x, y = tiny.samples(4).take(torch.arange(4))
    drawn = dict(
        zip(
            ("part:mixup:rows", "part:mixup:partners", "part:mixup:shares"),
            (torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5])),
            strict=True,
        )
    )
    batch = Batch(x, y, 0, 4, drawn)
    with torch.no_grad():
        outputs = {"head": student(x)}

    def ask(images: torch.Tensor) -> torch.Tensor | None:
        assert_close(images[0], (x[0] + x[1]) / 2)  # the teacher is asked about the mixture
        return student(images).detach() if told is None else told

    part = mixup.Mixup(config.MixupPart(**keys))
    return dict(part.terms(Seen(student, batch, None, outputs, {}, ask)))


def test_a_teacher_that_says_the_same_costs_nothing():
    assert float(seen(None)["mixup_kl"].detach()) == pytest.approx(0, abs=1e-6)


def test_terms_count_as_much_as_their_share_of_the_batch():
    told = torch.tensor([[3.0, 0.0, 1.0]])
    one, double = seen(told), seen(told, weight=2.0)
    for name in ("mixup_ce", "mixup_kl"):
        assert float(double[name].detach()) == pytest.approx(2 * float(one[name].detach()))
    logits = mixup.scale(tiny.problem().initial()(tiny.samples(4).take(torch.arange(2))[0].mean(0, keepdim=True)))
    target = torch.tensor([[0.5, 0.5, 0.0]])
    expected = 0.1 * -(target * logits.log_softmax(1)).sum() / 4
    assert_close(one["mixup_ce"], expected)


def test_a_term_of_weight_zero_is_not_computed():
    told = torch.tensor([[3.0, 0.0, 1.0]])
    assert set(seen(told)) == {"mixup_ce", "mixup_kl"}
    assert set(seen(told, alpha=0.0)) == {"mixup_ce"}
    assert set(seen(told, gamma=0.0)) == {"mixup_kl"}
    assert not mixup.Mixup(config.MixupPart(gamma=0.0, alpha=0.0)).is_on
    assert mixup.Mixup(config.MixupPart(alpha=0.0)).teacher is None
