"""Fusion: trust sums to 1, means under it, and bytes that do not depend on numbers of equals."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fedkd.maths import affinity, fusion

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


def test_a_weighting_names_its_rule():
    sent = replies_of([1, 3])
    assert torch.equal(fusion.by_weighting("examples", sent), fusion.by_examples(sent))
    assert torch.equal(fusion.by_weighting("uniform", sent), fusion.uniformly(sent))


def test_the_mean_size_is_of_those_heard():
    assert fusion.mean_size({"0": 1, "7": 4}) == 2.5
    assert fusion.mean_size({}) == 1


@pytest.mark.parametrize(("rule", "expected"), [(fusion.by_examples, 1.66425), (fusion.uniformly, 1.3525)])
def test_two_scalar_clients_average_to_the_golden_value(rule, expected):
    """Golden: tests/quadratics.py."""
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


# Knowledge about samples, trusted by label (docs/strategies/fedfuse.md, equations 3 to 7)

RULES = pytest.mark.parametrize("rule", fusion.RULES.values(), ids=fusion.RULES)
label_counts = st.lists(st.lists(st.integers(0, 500), min_size=3, max_size=3), min_size=1, max_size=5).filter(
    lambda rows: any(any(row) for row in rows)
)


def log_probs(senders, samples=6, classes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(senders, samples, classes, generator=draw, dtype=torch.float64)).log_softmax(2)


# 1
@given(label_counts, st.sampled_from([0.0, 1.0, 30.0]))
def test_trust_sums_to_one_for_each_receiver_and_label_that_somebody_holds(rows, beta):
    counts = torch.tensor(rows)
    distance = torch.rand(4, len(rows), generator=torch.Generator().manual_seed(1)) * 50
    trust = fusion.with_affinity(fusion.by_holders(counts), distance, beta)
    assert (trust >= 0).all()
    assert_close(trust.sum(1), (counts.sum(0) > 0).double().expand(4, -1))


@RULES
@given(rows=label_counts)
def test_fused_rows_are_laws_over_the_labels_that_somebody_holds(rule, rows):
    trust = fusion.by_holders(torch.tensor(rows))
    fused = rule(log_probs(len(rows)), trust)
    assert_close(fused.sum(2), torch.ones(1, 6, dtype=torch.float64))
    assert (fused[:, :, ~fusion.held(trust)[0]] == 0).all()


# 2
def test_equal_counts_give_the_plain_means():
    log = log_probs(4)
    trust = fusion.by_holders(torch.full((4, 3), 7))
    assert_close(fusion.trust_logit(log, trust)[0], log.mean(0).softmax(1))
    assert_close(fusion.trust_prob(log, trust)[0], log.exp().mean(0))
    assert_close(fusion.confident(log, trust)[0], log.exp().mean(0))


def test_no_distance_and_no_beta_leave_trust_as_it_is():
    trust = fusion.by_holders(torch.tensor([[1, 0, 2], [3, 0, 5]]))
    assert_close(fusion.with_affinity(trust, torch.rand(2, 2), 0.0), trust.expand(2, -1, -1))
    assert_close(fusion.with_affinity(trust, torch.zeros(2, 2), 9.0), trust.expand(2, -1, -1))


# 4
@given(st.floats(0, 1e5))
def test_who_alone_holds_a_label_is_trusted_on_it_by_all_at_any_distance(beta):
    counts = torch.tensor([[5, 5, 0], [0, 3, 0], [0, 0, 8]])
    distance = torch.tensor([[0.0, 1, 9], [1, 0, 700], [9, 700, 0]])
    trust = fusion.with_affinity(fusion.by_holders(counts), distance, beta)
    assert_close(trust[:, :, 2], torch.tensor([[0.0, 0, 1]] * 3, dtype=torch.float64))
    assert_close(trust[:, :, 0], torch.tensor([[1.0, 0, 0]] * 3, dtype=torch.float64))


def test_the_only_holders_word_is_what_trust_prob_starts_from():
    log = log_probs(3)
    fused = fusion.trust_prob(log, fusion.by_holders(torch.eye(3)))
    own = torch.stack([log[k, :, k].exp() for k in range(3)], 1)
    assert_close(fused[0], own / own.sum(1, keepdim=True))


# 5
@RULES
def test_a_sender_without_counts_changes_nothing_even_if_it_says_nan(rule):
    log, counts = log_probs(3), torch.tensor([[4, 0, 1], [0, 0, 0], [1, 2, 6]])
    log[1] = torch.nan
    expected = rule(log[[0, 2]], fusion.by_holders(counts[[0, 2]]))
    tiny.assert_same(tiny.canonical(rule(log, fusion.by_holders(counts))), tiny.canonical(expected))


# 6
@RULES
@given(order=st.permutations(range(4)), labels=st.permutations(range(3)))
def test_permuting_clients_changes_nothing_and_permuting_labels_permutes(rule, order, labels):
    log, counts = log_probs(4), torch.tensor([[4, 0, 1], [0, 9, 0], [1, 2, 6], [7, 7, 7]])
    fused = rule(log, fusion.by_holders(counts))
    assert_close(rule(log[order], fusion.by_holders(counts[order])), fused)
    assert_close(rule(log[:, :, labels], fusion.by_holders(counts[:, labels])), fused[:, :, labels])


@RULES
def test_permuting_receivers_permutes_what_they_receive(rule):
    log, counts = log_probs(3), torch.tensor([[4, 0, 1], [0, 9, 0], [1, 2, 6]])
    distance = torch.tensor([[0.0, 0.3, 1], [0.2, 0, 0.5], [2, 0.1, 0]])
    fused = rule(log, fusion.with_affinity(fusion.by_holders(counts), distance, 2.0))
    moved = rule(log, fusion.with_affinity(fusion.by_holders(counts), distance[[2, 0, 1]], 2.0))
    assert_close(moved, fused[[2, 0, 1]])


# 7
@RULES
@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_clients_that_know_the_likelihood_fuse_to_it_and_predict_as_bayes_would(rule, beta):
    """Finite x: students trained to the optimum have z_k(x)_y = log p(x | y) + c_k(x)."""
    likelihood = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.2, 0.5], [0.2, 0.7, 0.3]], dtype=torch.float64)  # (x, y)
    laws = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    posterior = likelihood * laws[:, None]
    posterior = posterior / posterior.sum(2, keepdim=True)
    z = posterior.log() - laws[:, None].log()  # what the optimum of CE(z + log pi, y) leaves
    distance = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    trust = fusion.with_affinity(fusion.by_holders(laws * 100), distance, beta)
    fused = rule(z.log_softmax(2), trust)
    assert_close(fused, (likelihood / likelihood.sum(1, keepdim=True)).expand(2, -1, -1))
    personal = fused * laws[:, None]
    assert_close(personal / personal.sum(2, keepdim=True), posterior)


# 8
def test_affinity_alone_gives_knfus_weights():
    distance = affinity.distance(affinity.epd(log_probs(3).exp()), "kl")
    trust = fusion.with_affinity(fusion.by_holders(torch.ones(3, 3)), distance, 10.0)
    assert_close(trust, affinity.weights(distance, 10.0)[:, :, None].expand(-1, -1, 3))


@given(label_counts, st.floats(0.01, 1))
def test_a_cap_holds_wherever_enough_others_hold_the_label(rows, cap):
    counts = torch.tensor(rows)
    trust = fusion.by_holders(counts, cap)[0]
    holders = (counts > 0).sum(0)
    assert_close(trust.sum(0), (holders > 0).double())
    assert (trust <= (1 / holders.clamp(min=1)).clamp(min=cap) + 1e-9).all()
    assert ((trust > 0) == (counts > 0)).all()


def test_a_client_that_lies_about_its_counts_weighs_no_more_than_the_cap():
    counts = torch.tensor([[10**9, 0], [30, 5], [10, 5]])
    assert fusion.by_holders(counts)[0, 0, 0] > 0.999
    assert_close(fusion.by_holders(counts, 0.4)[0, :, 0], torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64))
    assert_close(fusion.by_holders(counts, 1e-3)[0, :, 0], torch.full((3,), 1 / 3, dtype=torch.float64))
    assert_close(fusion.by_holders(counts, 0.4)[0, :, 1], torch.tensor([0, 0.5, 0.5], dtype=torch.float64))


def test_a_prior_is_the_smoothed_law_and_exactly_zero_where_counts_are_equal():
    prior = fusion.log_prior(torch.tensor([599, 0, 1]), 1.0)
    assert_close(prior.softmax(0), torch.tensor([600.0, 1, 2]) / 603)
    assert (fusion.log_prior(torch.tensor([60, 60, 60]), 1.0) == 0).all()


@RULES
def test_a_hundred_clients_and_classes_fuse_at_once(rule):
    log, counts = log_probs(100, 50, 100), torch.ones(100, 100)
    assert rule(log.float(), fusion.by_holders(counts)).shape == (1, 50, 100)
