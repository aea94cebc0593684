"""Diagnostics: values checked by hand, invariants for all inputs, finite whatever comes in."""

import json
import math
import time

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as np_st

from fedkd.maths import diagnostics

ONE_HOT = torch.eye(3)
LABELLED = {"teacher_accuracy", "own_accuracy", "filter_gain", "harmed", "calibration", "coverage"}


def said(*labels: int) -> torch.Tensor:
    """Certain predictions, (1, N, 3)."""
    return ONE_HOT[list(labels)][None]


def test_the_right_and_the_wrong_are_counted_by_hand():
    own = torch.cat([said(0, 1, 2, 2), said(1, 1, 1, 1)])  # right 3 of 4, and 1 of 4
    fused = torch.cat([said(0, 1, 1, 1), said(0, 1, 2, 0)])  # right 2 of 4, and 4 of 4
    found = diagnostics.of_fused(own, fused, torch.tensor([0, 1, 2, 0]))
    assert found["own_accuracy"] == 0.5
    assert found["teacher_accuracy"] == 0.75
    assert found["filter_gain"] == 0.25
    assert found["harmed"] == 0.5
    assert found["teacher_agreement"] == 3 / 8
    assert found["teacher_entropy"] == 0
    assert found["calibration"] == 0.25  # certain throughout, right three times in four
    assert found["coverage"] == [0.75, 1.0, 0.5]


def test_one_teacher_for_all_is_as_many_equal_ones():
    own, fused = torch.cat([said(0, 1), said(2, 2)]), said(0, 2)
    y = torch.tensor([0, 1])
    assert diagnostics.of_fused(own, fused, y) == diagnostics.of_fused(own, fused.expand(2, -1, -1), y)


def test_without_labels_only_what_needs_none_is_found():
    assert set(diagnostics.of_fused(said(0), said(1))) == {"teacher_agreement", "teacher_entropy"}
    unknown = diagnostics.of_fused(said(0, 1), said(1, 1), torch.tensor([-1, -1]))
    assert set(unknown) == {"teacher_agreement", "teacher_entropy"}


def test_samples_without_a_label_count_for_no_accuracy():
    found = diagnostics.of_fused(said(0, 1), said(0, 2), torch.tensor([0, -1]))
    assert found["teacher_accuracy"] == found["own_accuracy"] == 1
    assert found["coverage"] == [1.0, 0.0, 0.0]


def test_a_teacher_that_knows_nothing_has_the_entropy_of_the_uniform_law():
    found = diagnostics.of_fused(said(0, 1), torch.full((1, 2, 3), 1 / 3))
    assert found["teacher_entropy"] == pytest.approx(math.log(3))


def test_calibration_by_hand():
    probs = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]], dtype=torch.float64)
    # bin of 0.8: half right, gap 0.3; bin of 0.6: all right, gap 0.4
    assert diagnostics.calibration(probs, torch.tensor([0, 1, 1, 1])) == pytest.approx(0.5 * 0.3 + 0.5 * 0.4)


def test_what_does_not_belong_together_is_told():
    with pytest.raises(ValueError, match="not the same clients"):
        diagnostics.of_fused(torch.ones(3, 4, 2), torch.ones(2, 4, 2))


def test_nothing_is_found_in_nothing():
    assert diagnostics.of_fused(torch.ones(0, 4, 2), torch.ones(1, 4, 2)) == {}
    assert diagnostics.of_fused(torch.ones(2, 0, 2), torch.ones(1, 0, 2), torch.ones(0, dtype=torch.int64)) == {}
    assert diagnostics.of_generated(torch.ones(0, 4), torch.ones(0, dtype=torch.int64), torch.ones(0, 3)) == {}


numbers = st.floats(0, 1, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 3e38])


def arrays(*shape: int) -> st.SearchStrategy:
    return np_st.arrays("float32", shape, elements=numbers).map(torch.from_numpy)


@st.composite
def st_case(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Own and fused of some clients, samples and classes, with labels of which some are unknown."""
    clients, samples, classes = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    receivers = draw(st.sampled_from([1, clients]))
    y = draw(st.lists(st.integers(-1, classes - 1), min_size=samples, max_size=samples))
    return draw(arrays(clients, samples, classes)), draw(arrays(receivers, samples, classes)), torch.tensor(y)


@given(case=st_case())
def test_all_numbers_are_finite_and_in_their_range(case):
    found = diagnostics.of_fused(*case)
    json.dumps(found, allow_nan=False)
    assert set(found) - LABELLED == {"teacher_agreement", "teacher_entropy"}
    assert found["teacher_entropy"] >= 0
    for key in set(found) - {"teacher_entropy", "coverage", "filter_gain"}:
        assert 0 <= found[key] <= 1 + 1e-9
    if "coverage" in found:
        assert len(found["coverage"]) == case[0].shape[2]
        assert found["filter_gain"] == pytest.approx(found["teacher_accuracy"] - found["own_accuracy"])


@given(case=st_case(), seed=st.integers(0, 99))
def test_the_order_of_clients_and_samples_does_not_matter(case, seed):
    own, fused, y = case
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    clients = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
    mixed = fused if len(fused) == 1 else fused[clients]
    one, other = (
        diagnostics.of_fused(own, fused, y),
        diagnostics.of_fused(own[clients][:, order], mixed[:, order], y[order]),
    )
    assert one.keys() == other.keys()
    for key in one:
        assert one[key] == pytest.approx(other[key], abs=1e-6)


@given(case=st_case())
def test_receiving_ones_own_knowledge_agrees_gains_and_harms_nothing(case):
    own, _, y = case
    found = diagnostics.of_fused(own, own, y)
    assert found["teacher_agreement"] == 1
    if "harmed" in found:
        assert found["harmed"] == found["filter_gain"] == 0


def test_generated_samples_by_hand():
    z = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    y = torch.tensor([0, 0, 1, 1])
    probs = torch.tensor([[1.0, 0], [0.2, 0.8], [0, 1.0], [0, 1.0]])
    found = diagnostics.of_generated(z, y, probs)
    assert found["fidelity"] == 0.75
    assert found["variety"] == pytest.approx(4 / (36 + 16 + 16 + 36))
    assert diagnostics.of_generated(z[[0, 0, 2, 2]], y, probs)["variety"] == 0


@given(z=arrays(6, 3), y=st.lists(st.integers(0, 2), min_size=6, max_size=6), probs=arrays(6, 3))
@settings(max_examples=50)
def test_generated_samples_give_finite_numbers(z, y, probs):
    found = diagnostics.of_generated(z, torch.tensor(y), probs)
    assert all(0 <= value <= 1 for value in found.values())


def test_a_hundred_clients_and_a_hundred_classes_take_no_time():
    own = torch.rand(100, 500, 100, generator=torch.Generator().manual_seed(0)).softmax(2)
    y = torch.arange(500) % 100
    diagnostics.of_fused(own, own, y)
    start = time.process_time()
    diagnostics.of_fused(own, own[:1], y)
    assert time.process_time() - start < 2  # measured: 0.05 s; a loop over clients and classes would take seconds
