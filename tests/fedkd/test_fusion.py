"""Fusion: trust sums to 1, means under it, and bytes that do not depend on numbers of equals."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fedkd import fusion

sizes = st.lists(st.integers(1, 10**9), min_size=1, max_size=8)
counts = st.lists(st.lists(st.integers(1, 10**6), min_size=3, max_size=3), min_size=1, max_size=6)


def replies(weights, num_examples):
    return [tiny.reply(k, w, n) for k, (w, n) in enumerate(zip(weights, num_examples, strict=True))]


def replies_of(num_examples):
    return replies([{}] * len(num_examples), num_examples)


@given(sizes)
def test_trust_by_examples_sums_to_one_and_is_the_share_of_the_data(num_examples):
    trust = fusion.by_examples(replies_of(num_examples))
    assert trust.shape == (1, len(num_examples), 1)
    assert float(trust.double().sum()) == pytest.approx(1, abs=1e-6)
    assert_close(trust.flatten(), torch.tensor([n / sum(num_examples) for n in num_examples]))


@given(sizes)
def test_uniform_trust_sums_to_one_and_ignores_sizes(num_examples):
    trust = fusion.uniformly(replies_of(num_examples))
    assert trust.shape == (1, len(num_examples), 1)
    assert len(trust.unique()) == 1
    assert float(trust.double().sum()) == pytest.approx(1, abs=1e-6)


@given(counts)
def test_trust_by_label_sums_to_one_for_each_label_and_is_positive(rows):
    trust = fusion.by_label_counts(torch.tensor(rows))
    assert trust.shape == (1, len(rows), 3)
    assert (trust > 0).all()
    assert_close(trust.sum(1), torch.ones(1, 3))


def test_trust_by_label_is_the_share_of_that_label():
    trust = fusion.by_label_counts(torch.tensor([[1, 9, 1], [3, 1, 1]]))
    assert_close(trust[0], torch.tensor([[0.25, 0.9, 0.5], [0.75, 0.1, 0.5]]))


def test_rules_compose_by_product_and_renormalisation():
    product = fusion.uniformly(replies_of([1, 1])) * fusion.by_label_counts(torch.tensor([[1, 3], [1, 1]]))
    assert_close(fusion.normalise(product)[0], torch.tensor([[0.5, 0.75], [0.5, 0.25]]))


@given(counts)
def test_fusing_equal_senders_changes_nothing(rows):
    trust = fusion.by_label_counts(torch.tensor(rows))
    row = torch.arange(15.0).view(1, 3, 5)
    assert_close(fusion.fuse(row.expand(len(rows), -1, -1), trust), row)


def test_fuse_is_the_weighted_mean_for_each_receiver_and_label():
    values = torch.tensor([[[1.0], [10.0]], [[3.0], [30.0]]])  # two senders, two labels, one coordinate
    trust = torch.tensor([[[1.0, 0.5], [0.0, 0.5]], [[0.25, 0.0], [0.75, 1.0]]])  # two receivers
    assert_close(fusion.fuse(values, trust), torch.tensor([[[1.0], [20.0]], [[2.5], [30.0]]]))


def test_one_trust_for_all_labels_is_expanded():
    values = torch.tensor([[[1.0], [10.0]], [[3.0], [30.0]]])
    assert_close(fusion.fuse(values, torch.tensor([[[0.5], [0.5]]])), torch.tensor([[[2.0], [20.0]]]))


@given(sizes, st.integers(0, 2**31))
def test_equal_models_average_to_themselves_to_the_last_bit(num_examples, seed):
    entry = torch.randn(7, generator=torch.Generator().manual_seed(seed))
    sent = replies([{"a": entry}] * len(num_examples), num_examples)
    fused = fusion.fuse_weights(sent, fusion.by_examples(sent))
    tiny.assert_same_weights(fused, {"a": entry})


@given(st.permutations(range(5)))
def test_order_changes_the_mean_by_rounding_at_most(order):
    models = [{"a": torch.randn(50, generator=torch.Generator().manual_seed(k))} for k in range(5)]
    sent = replies(models, [1, 20, 300, 4000, 5])
    moved = [sent[k] for k in order]
    one, other = (fusion.fuse_weights(rows, fusion.by_examples(rows))["a"] for rows in (sent, moved))
    assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rule", "expected"), [(fusion.by_examples, 1.66425), (fusion.uniformly, 1.3525)])
def test_two_scalar_clients_average_to_the_golden_value(rule, expected):
    """Golden: baselines.md 7.1."""
    sent = replies([{"w": torch.tensor([0.729])}, {"w": torch.tensor([1.976])}], [1, 3])
    assert float(fusion.fuse_weights(sent, rule(sent))["w"]) == pytest.approx(expected, abs=1e-6)


def test_fused_entries_keep_dtype_shape_and_order_of_names():
    model = {"b": torch.zeros(2, 3), "a": torch.zeros((), dtype=torch.float64)}
    sent = replies([model, model], [1, 2])
    fused = fusion.fuse_weights(sent, fusion.by_examples(sent))
    assert [(n, v.dtype, v.shape) for n, v in fused.items()] == [(n, v.dtype, v.shape) for n, v in model.items()]


def test_fusing_leaves_the_replies_alone():
    sent = replies([{"a": torch.ones(3)}, {"a": torch.zeros(3)}], [1, 2])
    before = tiny.canonical(sent)
    fused = fusion.fuse_weights(sent, fusion.by_examples(sent))
    fused["a"].add_(1)
    assert tiny.canonical(sent) == before


@pytest.mark.parametrize(("trust", "expected"), [([0.5, 0.5], 2), ([1.0, 0.0], 1), ([0.25] * 4, 4)])
def test_effective_senders_are_the_exponential_of_the_entropy(trust, expected):
    assert fusion.describe(torch.tensor(trust).view(1, -1, 1)) == {"effective_senders": pytest.approx(expected)}


def test_effective_senders_are_averaged_over_labels():
    trust = torch.tensor([[[1.0, 0.5], [0.0, 0.5]]])
    assert fusion.describe(trust) == {"effective_senders": pytest.approx(1.5)}
