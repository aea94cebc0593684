import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from fedkd import seeds
from fedkd.maths import affinity

KINDS = ["kl", "kl_rev", "js", "l1", "l2", "cos"]
SYMMETRIC = ["js", "l1", "l2", "cos"]
LAWS = torch.tensor([[0.5, 0.5, 0], [0.4, 0.6, 0], [0, 0.2, 0.8]], dtype=torch.float64)
LOGITS = torch.tensor([[[2, 1, 0], [0, 1, 0]], [[1, 2, 0], [0, 2, 0]], [[0, 0, 3], [-1, 0, 1]]], dtype=torch.float64)


def near(actual, expected, atol=1e-6):
    assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def laws(seed, clients=6, classes=4):
    generator = seeds.stream(seed, "laws").torch()
    return torch.softmax(2 * torch.randn(clients, classes, generator=generator, dtype=torch.float64), -1)


any_law = st.builds(laws, st.integers(0, 500), st.integers(2, 7), st.integers(2, 5))
any_beta = st.sampled_from([0.0, 0.3, 1.0, 10.0, 1e4, math.inf])


def test_weights_from_the_spec_with_kl():
    D = affinity.distance(LAWS, "kl")
    near(D, [[0, 0.020411, 7.019306], [0.020135, 0, 5.818837], [10.690605, 10.654140, 0]])
    W = affinity.weights(D, 10)
    near(W, [[0.550851, 0.449149, 0], [0.449831, 0.550169, 0], [0, 0, 1]])
    others = affinity.weights(D, 10, include_self=False)
    near(others, [[0, 1, 0], [1, 0, 0], [0.409837, 0.590163, 0]])
    near(affinity.weights(D, 1)[:2], [[0.504874, 0.494674, 0.000452], [0.494225, 0.504277, 0.001498]])


def test_weights_from_the_spec_with_other_distances():
    D = affinity.distance(LAWS, "js")
    near(D[[0, 0, 1], [1, 2, 2]], [0.005059, 0.483738, 0.468199])
    js = [[0.510571, 0.485382, 0.004048], [0.485052, 0.510223, 0.004725], [0.007794, 0.009104, 0.983102]]
    near(affinity.weights(D, 10), js)
    near(affinity.weights(affinity.distance(LAWS, "l1"), 10)[0], [0.880796, 0.119204, 0], atol=2e-6)
    near(affinity.distance(LAWS, "cos")[0, 1:], [0.019419, 0.828499], atol=2e-6)


def test_a_prior_by_size_multiplies_before_normalising():
    D = affinity.distance(LAWS, "kl")
    near(affinity.weights(D, 10, prior_K=torch.tensor([100, 300, 600]))[0], [0.290181, 0.709819, 0])


def test_epd_distance_and_weights_of_a_full_round_from_the_spec():
    P = affinity.epd(torch.softmax(LOGITS, -1))
    near(P, [[0.438591, 0.410423, 0.150986], [0.175618, 0.726113, 0.098269], [0.067655, 0.145003, 0.787342]])
    D = affinity.distance(P)
    near(D, [[0, 0.232115, 0.997452], [0.211320, 0, 1.132752], [1.022946, 1.340286, 0]])
    W = affinity.weights(D, 10)
    near(W, [[0.910575, 0.089383, 0.000042], [0.107819, 0.892170, 0.000011], [0.000036, 0.000002, 0.999962]])
    near(affinity.effective_senders(W), [1.351984, 1.407850, 1.000427], atol=2e-6)
    js = affinity.weights(affinity.distance(P, "js"), 10)
    near(js[0], [0.593363, 0.345438, 0.061199])


def test_the_epd_of_a_perfect_classifier_is_the_label_law_of_the_probe():
    y = torch.arange(4).repeat_interleave(torch.tensor([40, 30, 20, 10]))
    near(affinity.epd(torch.eye(4)[y][None])[0], [0.4, 0.3, 0.2, 0.1])
    near(affinity.label_shares(y[None], 4)[0], [0.4, 0.3, 0.2, 0.1])


def test_rows_that_do_not_quite_sum_to_one_are_normalised_first():
    near(affinity.epd(torch.tensor([[[0.5, 0.5], [1.0, 3.0]]]))[0], [0.375, 0.625])


def test_reported_laws_may_add_one_of_each_label():
    counts = torch.tensor([[3, 1, 0], [0, 0, 0]])
    near(affinity.reported(counts), [[0.75, 0.25, 0], [1 / 3, 1 / 3, 1 / 3]])
    near(affinity.reported(counts, pseudo=1.0)[0], [4 / 7, 2 / 7, 1 / 7])


def test_a_missing_class_costs_the_logarithm_of_eps():
    D = affinity.distance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert float(D[0, 1]) == pytest.approx(-math.log(1e-6), rel=1e-3)


@given(any_law, st.sampled_from(KINDS))
def test_distances_are_not_negative_and_zero_from_oneself(P, kind):
    D = affinity.distance(P, kind)
    assert D.dtype == torch.float64
    assert bool((D >= 0).all())
    assert not D.diagonal().any()


@given(any_law)
def test_kl_rev_is_kl_turned_round_and_the_others_are_symmetric(P):
    assert_close(affinity.distance(P, "kl_rev"), affinity.distance(P, "kl").mT)
    for kind in SYMMETRIC:
        D = affinity.distance(P, kind)
        assert_close(D, D.mT, rtol=0, atol=1e-12)


@given(any_law)
def test_bounded_distances_keep_their_bounds(P):
    for kind, most in {"js": math.log(2), "l1": 2.0, "l2": math.sqrt(2), "cos": 1.0}.items():
        assert float(affinity.distance(P, kind).max()) <= most + 1e-12


@given(any_law, st.sampled_from(KINDS), any_beta, st.booleans())
def test_rows_of_weights_sum_to_one(P, kind, beta, include_self):
    W = affinity.weights(affinity.distance(P, kind), beta, include_self=include_self)
    assert bool((W >= 0).all())
    assert_close(W.sum(1), torch.ones(len(P), dtype=torch.float64), rtol=0, atol=1e-12)


@given(any_law, any_beta)
def test_nobody_is_nearer_than_oneself(P, beta):
    W = affinity.weights(affinity.distance(P), beta)
    own = W.diagonal()
    assert bool((own[:, None] >= W - 1e-15).all())
    assert bool((own >= 1 / len(P) - 1e-12).all())


@given(any_law, st.sampled_from(KINDS))
def test_weights_fall_as_distances_grow(P, kind):
    D = affinity.distance(P, kind)
    W = affinity.weights(D, 5.0)
    ordered = W.gather(1, D.argsort(1))
    assert bool((ordered.diff(dim=1) <= 1e-12).all())


@given(any_law)
def test_beta_zero_trusts_all_alike(P):
    W = affinity.weights(affinity.distance(P), 0.0)
    assert_close(W, torch.full_like(W, 1 / len(P)), rtol=0, atol=1e-12)


def test_beta_infinite_keeps_the_nearest_and_shares_ties():
    P = laws(1)
    D = affinity.distance(P)
    assert torch.equal(affinity.weights(D, math.inf), torch.eye(6, dtype=torch.float64))
    nearest = affinity.weights(D, math.inf, include_self=False)
    assert torch.equal(nearest.argmax(1), (D + 100 * torch.eye(6)).argmin(1))
    assert set(nearest.unique().tolist()) == {0.0, 1.0}
    twins = affinity.distance(P[[0, 0, 1]])
    near(affinity.weights(twins, math.inf), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])


@given(any_law, st.lists(st.floats(0, 100), min_size=2, max_size=2).map(sorted))
def test_effective_senders_do_not_grow_with_beta(P, betas):
    D = affinity.distance(P)
    fewer, more = (affinity.effective_senders(affinity.weights(D, beta)) for beta in reversed(betas))
    assert bool((fewer <= more + 1e-9).all())
    assert float(more.max()) <= len(P) + 1e-9


@given(any_law, st.integers(0, 99), st.sampled_from(KINDS))
def test_reordering_clients_reorders_the_weights_and_reordering_classes_changes_nothing(P, seed, kind):
    generator = seeds.stream(seed, "order").torch()
    order, classes = torch.randperm(len(P), generator=generator), torch.randperm(P.shape[1], generator=generator)
    D = affinity.distance(P, kind)
    assert_close(affinity.distance(P[order], kind), D[order][:, order], rtol=0, atol=1e-12)
    assert_close(affinity.distance(P[:, classes], kind), D, rtol=0, atol=1e-12)
    W = affinity.weights(D, 10)
    assert_close(affinity.weights(affinity.distance(P[order], kind), 10), W[order][:, order], rtol=0, atol=1e-9)


def test_identical_clients_trust_each_other_alike():
    for kind in KINDS:
        D = affinity.distance(laws(2)[[3, 3, 3, 3]], kind)
        near(affinity.weights(D, 10), torch.full((4, 4), 0.25), atol=1e-9)


def test_an_exact_copy_doubles_its_share_before_normalising():
    P = laws(3)
    once, twice = (affinity.weights(affinity.distance(laws), 10) for laws in (P, P[[0, 1, 2, 3, 4, 5, 5]]))
    scaled = once.clone()
    scaled[:, 5] *= 2
    scaled /= scaled.sum(1, keepdim=True)
    assert_close(twice[:6, 5] + twice[:6, 6], scaled[:, 5])


def test_a_constant_added_to_a_row_changes_nothing():
    D = affinity.distance(laws(4))
    D_more = D.clone()
    D_more[2] += 7
    assert_close(affinity.weights(D_more, 10), affinity.weights(D, 10), rtol=0, atol=1e-9)


@given(any_law)
def test_without_self_a_row_is_the_rest_of_the_row_renormalised(P):
    D = affinity.distance(P)
    inside, outside = affinity.weights(D, 1.0), affinity.weights(D, 1.0, include_self=False)
    rest = inside - torch.diag(inside.diagonal())
    assert_close(outside * (1 - inside.diagonal())[:, None], rest, rtol=0, atol=1e-10)


def test_one_client_alone_without_self_has_no_teacher():
    D = affinity.distance(LAWS[:1])
    near(affinity.weights(D, 10), [[1.0]])
    for beta in (10.0, math.inf):
        W = affinity.weights(D, beta, include_self=False)
        near(W, [[0.0]])
        near(affinity.effective_senders(W), [0.0])


def test_top_keeps_the_nearest_and_prefers_the_lower_client_among_ties():
    P = laws(5)[[0, 1, 1, 2]]
    W = affinity.weights(affinity.distance(P), 1.0, top=2)
    assert bool(((W > 0).sum(1) == 2).all())
    near_first = affinity.weights(affinity.distance(P), 0.0, top=1)
    assert near_first[2].tolist() == [0, 1, 0, 0]
    assert_close(affinity.weights(affinity.distance(P), 1.0, top=9), affinity.weights(affinity.distance(P), 1.0))


def test_senders_who_are_not_allowed_get_nothing_however_near():
    D = affinity.distance(LAWS)
    W = affinity.weights(D, 1000.0, allowed=torch.tensor([False, False, True]))
    near(W, [[0, 0, 1]] * 3)
    near(affinity.weights(D, 10, prior_K=torch.tensor([0, 1, 0])), [[0, 1, 0]] * 3)


def test_an_infinite_distance_is_no_sender():
    D = torch.tensor([[0.0, math.inf], [math.inf, 0.0]], dtype=torch.float64)
    near(affinity.weights(D, 0.0), [[1, 0], [0, 1]])


def test_beta_for_a_number_of_senders_is_found_by_bisection():
    D = affinity.distance(laws(6, clients=10))
    beta = affinity.beta_for(D, 3.0)
    assert float(affinity.effective_senders(affinity.weights(D, beta)).mean()) == pytest.approx(3.0, abs=1e-6)
    assert affinity.beta_for(D, 10.0) == 0.0
    alike = affinity.distance(laws(7)[[0, 0, 0]])
    assert affinity.beta_for(alike, 2.0) == pytest.approx(affinity.MAX_BETA, rel=0.1)


def test_tables_are_compared_on_labels_that_both_have():
    table = torch.softmax(torch.randn(3, 2, 2, generator=seeds.stream(1, "table").torch(), dtype=torch.float64), -1)
    defined = torch.tensor([[True, True], [True, False], [False, False]])
    table[1, 1] = math.nan
    D = affinity.table_distance(table, defined)
    near(D[0, 1], affinity.distance(table[:2, 0])[0, 1])
    assert D[0, 2] == math.inf
    assert D[2, 2] == 0


def test_a_matrix_for_each_sample_comes_from_one_call():
    P = torch.stack([laws(8), laws(9)])
    D = affinity.distance(P)
    assert_close(D[1], affinity.distance(laws(9)))
    assert_close(affinity.weights(D, 10)[1], affinity.weights(affinity.distance(laws(9)), 10))


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="hellinger"):
        affinity.distance(LAWS, "hellinger")


def test_distances_stay_as_they_are():
    D = affinity.distance(LAWS)
    before = D.clone()
    for beta in (0.0, 10.0, math.inf):
        affinity.weights(D, beta, include_self=False, top=1, prior_K=torch.ones(3))
    assert torch.equal(D, before)


def test_weights_by_label_come_from_one_matrix():
    D, owns = affinity.distance(LAWS), torch.tensor([[True, True, False], [False, True, True]])
    W = affinity.weights(D, 10, allowed=owns[:, None])
    for label in range(2):
        assert_close(W[label], affinity.weights(D, 10, allowed=owns[label]))


def test_samples_may_have_weights_of_their_own():
    values = torch.arange(12.0).view(2, 3, 2).double()
    W = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    near(affinity.mix(W, values)[0], 0.25 * values[0] + 0.75 * values[1])
    by_sample = torch.stack([W, W.flip(1), W])
    near(affinity.mix(by_sample, values)[0, 1], 0.75 * values[0, 1] + 0.25 * values[1, 1])


def test_the_ledger_is_told_who_is_heard():
    found = affinity.describe(torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]).double(), torch.arange(3))
    assert [found[f"effective_senders{end}"] for end in ("", "_least", "_most")] == [1.5, 1, 2]
    assert found["without_sender"] == pytest.approx(1 / 3)
    assert (found["is_local"], found["is_untested"]) == (0, 0)
    local = affinity.describe(torch.eye(3).double(), torch.arange(3))
    assert (local["is_local"], local["is_untested"]) == (1, 1)
    uniform = affinity.describe(torch.full((3, 3), 1 / 3).double(), torch.arange(3))
    others = affinity.describe((torch.ones(3, 3) - torch.eye(3)).double() / 2, torch.arange(3))
    assert uniform["is_untested"] == others["is_untested"] == 1


def test_what_travels_are_finite_logarithms():
    found = affinity.as_logits(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert found.dtype == torch.float32
    near(found.double(), [math.log(1e-38), math.log(0.25), 0], atol=1e-5)


def test_teachers_are_by_client_and_equal_ones_are_one_tensor():
    W = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]], dtype=torch.float64)
    fused = affinity.mix(W, LOGITS.softmax(-1))
    found = affinity.teachers([4, 7, 9], W, fused)
    assert sorted(found) == [4, 7]  # nobody teaches 9
    assert found[4] is found[7]
    assert torch.equal(found[4], affinity.as_logits(fused[0]))


def test_receivers_whose_weights_differ_on_one_sample_have_teachers_of_their_own():
    W = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    W[0] = 0.5
    found = affinity.teachers([0, 1], W, affinity.mix(W, LOGITS[:2].softmax(-1)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])
