"""Measures against values made by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fedkd.maths import metrics


def test_accuracy_over_clients_by_hand():
    found = metrics.over_clients([1, 3, 10], [2, 4, 10])
    assert found["mean"] == pytest.approx((0.5 + 0.75 + 1) / 3)
    assert found["std"] == pytest.approx((((0.25**2) + 0 + (0.25**2)) / 3) ** 0.5)
    assert found["worst_decile"] == 0.5
    assert found["pooled"] == 14 / 16


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_worst_decile_is_the_mean_of_a_tenth_rounded_up(clients, worst):
    found = metrics.over_clients(range(clients), [100] * clients)
    assert found["worst_decile"] == pytest.approx(sum(range(worst)) / worst / 100)


@given(st.permutations(range(7)))
def test_order_of_clients_changes_no_bit_of_their_accuracy(order):
    correct, counts = [1, 5, 3, 8, 9, 2, 7], [3, 7, 11, 13, 17, 19, 23]
    expected = metrics.over_clients(correct, counts)
    assert metrics.over_clients([correct[k] for k in order], [counts[k] for k in order]) == expected


def test_weight_drift_equals_that_of_all_updates_in_one_matrix():
    draws = torch.Generator().manual_seed(3)
    sent = {"a": torch.randn(3, 5, generator=draws), "a.running_mean": torch.randn(5, generator=draws)}
    back = [{name: value + torch.randn(value.shape, generator=draws) for name, value in sent.items()} for _ in range(7)]
    updates_KP = torch.stack([(weights["a"] - sent["a"]).flatten() for weights in back]).double()
    mean_P = updates_KP.mean(0)
    found = metrics.weight_drift([sent] * 7, back)
    assert found["weights"] == pytest.approx(float((updates_KP - mean_P).norm(dim=1).mean()), rel=1e-12)
    expected = torch.cosine_similarity(updates_KP, mean_P[None]).mean()
    assert found["cosine"] == pytest.approx(float(expected), rel=1e-12)


def test_weight_drift_by_hand():
    sent = [{"a": torch.zeros(2)}] * 2
    found = metrics.weight_drift(sent, [{"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([3.0, -4.0])}])
    assert found["weights"] == pytest.approx(4)  # from their mean (3, 0)
    assert found["cosine"] == pytest.approx(0.6)


def test_drift_is_of_the_updates_not_of_the_weights():
    sent = [{"a": torch.tensor([1.0])}, {"a": torch.tensor([5.0])}]
    found = metrics.weight_drift(sent, [{"a": torch.tensor([2.0])}, {"a": torch.tensor([6.0])}])
    assert found == {"weights": pytest.approx(0), "cosine": pytest.approx(1)}


def test_statistics_do_not_count_as_drift():
    sent = [{"a": torch.zeros(1), "norm.running_var": torch.zeros(1)}] * 2
    back = [{"a": torch.ones(1), "norm.running_var": torch.full((1,), 100.0 * k)} for k in range(2)]
    assert metrics.weight_drift(sent, back)["weights"] == 0


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[0, 1, 2]], 0),  # one client
        ([[0, 1, 2], [0, 1, 2]], 0),
        ([[0, 1, 2], [0, 2, 1]], 2 / 3),
        ([[0], [0], [1]], 2 / 3),  # of three pairs two disagree
        ([[0], [1], [2]], 1),
    ],
)
def test_function_drift_is_the_share_of_pairs_that_disagree(labels, expected):
    assert metrics.function_drift(torch.tensor(labels, dtype=torch.uint8), 3) == pytest.approx(expected)


@given(st.integers(0, 1000))
def test_function_drift_equals_the_comparison_pair_by_pair(seed):
    labels = torch.randint(3, (4, 9), generator=torch.Generator().manual_seed(seed))
    pairs = [(labels[i] != labels[j]).float().mean() for i in range(4) for j in range(4) if i != j]
    assert metrics.function_drift(labels.to(torch.uint8), 3) == pytest.approx(float(sum(pairs)) / 12, abs=1e-6)


def test_summary_of_twelve_rounds():
    found = metrics.summarise(dict(enumerate([0.0, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.2, 0.1], 1)))
    assert found["last"] == 0.1
    assert found["last10"] == pytest.approx(0.39)
    assert found["top5"] == pytest.approx((0.9 + 0.8 + 0.7 + 0.6 + 0.5) / 5)
    assert found["best"] == 0.9


def test_summary_of_one_round_is_that_round():
    assert set(metrics.summarise({1: 0.25}).values()) == {0.25}


def test_the_last_ten_are_rounds_not_evaluations():
    found = metrics.summarise({10: 0.1, 20: 0.2, 30: 0.6})
    assert found["last10"] == 0.6
    assert found["top5"] == pytest.approx(0.3)


def test_mean_statistics_are_over_those_that_have_them():
    kept = [{"v": torch.tensor([1.0]), "other": torch.tensor([9.0])}, {}, {"v": torch.tensor([4.0])}]
    assert_close(dict(metrics.mean_statistics(kept, ["v"])), {"v": torch.tensor([2.5])})


def test_without_holders_there_are_no_statistics():
    assert metrics.mean_statistics([{}, {}], ["v"]) == {}


def test_mean_by_name_is_over_those_that_have_it_in_order_of_appearance():
    found = metrics.mean_by_name([{"ce": 1.0}, {"kl": 4.0, "ce": 2.0}])
    assert list(found.items()) == [("ce", 1.5), ("kl", 4.0)]


# In-local and out-local accuracy


def probed(*accuracies: float, per_label: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels that one student gives `per_label` images of each label, right as often as said; and the true ones."""
    true = torch.arange(len(accuracies)).repeat_interleave(per_label)
    given = true.clone()
    for label, accuracy in enumerate(accuracies):
        given[label * per_label + round(accuracy * per_label) : (label + 1) * per_label] = (label + 1) % len(accuracies)
    return given[None].to(torch.uint8), true


def test_in_local_and_out_local_accuracy_by_hand():
    """By hand: A = (.9, .6, .3), q = (.5, .5, 0)."""
    labels, true = probed(0.9, 0.6, 0.3)
    found = metrics.local_accuracy(labels, true, torch.tensor([[0.5, 0.5, 0.0]]))
    assert found == {"in": pytest.approx(0.75), "out": pytest.approx(0.525)}


def test_in_local_and_out_local_accuracy_are_means_over_clients():
    (one, true), (other, _) = probed(0.9, 0.6, 0.3), probed(0.1, 1.0, 0.0)
    laws = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    found = metrics.local_accuracy(torch.cat([one, other]), true, laws)
    assert found == {"in": pytest.approx((0.75 + 1.0) / 2), "out": pytest.approx((0.525 + 0.05) / 2)}


def test_of_a_client_that_holds_all_labels_alike_both_are_its_accuracy():
    labels, true = probed(0.9, 0.6, 0.3)
    found = metrics.local_accuracy(labels, true, torch.full((1, 3), 1 / 3))
    assert found == {"in": pytest.approx(0.6), "out": pytest.approx(0.6)}


def test_labels_without_a_probe_image_are_left_out_of_both():
    labels, true = probed(0.9, 0.6, 0.3)
    seen = true != 1
    found = metrics.local_accuracy(labels[:, seen], true[seen], torch.tensor([[0.5, 0.5, 0.0]]))
    assert found == {"in": pytest.approx(0.9), "out": pytest.approx((0.25 * 0.9 + 0.5 * 0.3) / 0.75)}


def test_a_client_none_of_whose_labels_is_probed_counts_out_local_only():
    labels, true = probed(0.9, 0.6, 0.3)
    seen = true != 0
    found = metrics.local_accuracy(labels[:, seen], true[seen], torch.tensor([[1.0, 0.0, 0.0]]))
    assert found == {"out": pytest.approx(0.45)}
