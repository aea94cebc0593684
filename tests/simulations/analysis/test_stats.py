"""Statistics of a comparison: against SciPy, against numbers checked by hand, and against simulated truth.

Simulations draw from fixed seeds, so they pass or fail for good; tolerances are about three standard errors.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from simulations.analysis import stats

POINTS = st.floats(-1, 1).map(lambda value: round(value, 4))  # differences of accuracies have few decimals
DIFFERENCES = st.lists(POINTS, min_size=1, max_size=16)
PS = st.lists(st.floats(0, 1), min_size=1, max_size=8)
# Demšar, JMLR 2006, table 6: AUC of C4.5 with neither, either or both of two parameters tuned, on 14 data sets. In the
# 13th he ranks the third before the fourth by digits that he does not print (.975 both): hence .9751.
DEMSAR = """
.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657  .882 .888 .886 .898
.936 .931 .916 .931  .661 .668 .609 .685  .583 .583 .563 .625  .775 .838 .866 .875  1 1 1 1
.940 .962 .965 .962  .619 .666 .614 .669  .972 .981 .9751 .975  .957 .978 .946 .970
"""


def draws(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def interval(found):
    return [found.low, found.high]


def table_of(values, names="abcdefgh"):
    return {f"s{number}": dict(zip(names, row, strict=False)) for number, row in enumerate(values)}


# Intervals


def test_the_interval_of_1_2_3_is_2_plus_minus_4_303_times_1_over_root_3():
    found = stats.mean_interval([1, 2, 3])
    assert (found.mean, found.is_known) == (2, True)
    assert interval(found) == pytest.approx([2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], abs=1e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_intervals_are_those_of_scipys_t_test(confidence):
    values = draws(0, 9)
    theirs = reference.ttest_1samp(values, 0).confidence_interval(confidence)
    assert interval(stats.mean_interval(values, confidence)) == pytest.approx([theirs.low, theirs.high])


def test_one_value_has_a_mean_and_no_known_interval():
    found = stats.mean_interval([0.7])
    assert found.mean == 0.7
    assert not found.is_known
    assert all(map(math.isnan, interval(found)))


def test_t_intervals_cover_the_truth_as_often_as_they_say():
    found = [stats.mean_interval(0.3 + row) for row in draws(1, 1500, 8)]
    assert np.mean([one.low <= 0.3 <= one.high for one in found]) == pytest.approx(0.95, abs=0.017)


def test_bootstrap_intervals_cover_the_truth_nearly_as_often_as_they_say():
    """BCa is known to fall short for few pairs: with 16 it covers about 92.5 %, with 250 draws give or take 5."""
    found = [stats.paired(0.3 + row) for row in draws(2, 250, 16)]
    assert 0.875 <= np.mean([one.boot_low <= 0.3 <= one.boot_high for one in found]) <= 0.975
    assert {one.boot_method for one in found} == {"BCa"}


# Paired differences


def test_a_comparison_by_hand():
    found = stats.paired([0.03, 0.01, 0.02, 0.04])
    assert (found.n, found.wins, found.ties, found.losses) == (4, 4, 0, 0)
    assert (found.test, found.p, found.smallest_p) == ("exact sign flips", 2 / 16, 2 / 16)
    assert (found.mean, found.sd) == pytest.approx((0.025, (5 / 3) ** 0.5 / 100))
    assert found.d_z == pytest.approx(2.5 / (5 / 3) ** 0.5)
    assert interval(found) == pytest.approx(interval(stats.mean_interval([0.03, 0.01, 0.02, 0.04])))


def test_p_by_hand_counts_the_sign_patterns_that_are_as_extreme():
    assert stats.sign_flip([1, 2, -3]) == 1  # the sum is 0: all patterns are as extreme
    assert stats.sign_flip([3, 2, -1]) == 4 / 8  # |sums| 6 4 2 0, each twice; 4 and 6 are at least 4


def test_sums_that_are_equal_but_for_rounding_count_as_equal():
    assert 0.1 + 0.2 - 0.3 != 0.1 - 0.3 + 0.2
    assert stats.sign_flip([0.1, 0.2, -0.3]) == 1


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_sign_flips_agree_with_scipys_permutation_test(n):
    values = 0.5 + draws(n, n)
    theirs = reference.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    found = stats.paired(values)
    assert (found.test, found.p) == ("exact sign flips", pytest.approx(theirs.pvalue))


def test_the_bootstrap_is_scipys_with_the_seed_given():
    values = np.sort(draws(3, 8))
    theirs = reference.bootstrap((values,), np.mean, method="BCa", rng=5).confidence_interval
    found = stats.paired(values, seed=5)
    assert (found.boot_low, found.boot_high, found.boot_method) == (theirs.low, theirs.high, "BCa")
    assert found.boot_low != stats.paired(values, seed=6).boot_low


def test_equal_differences_have_no_effect_size_and_say_that_the_bootstrap_is_the_percentile_one():
    found = stats.paired([0.3 - 0.2, 0.2 - 0.1, 0.1])  # equal but for rounding
    assert (found.sd, found.boot_method, found.p) == (0, "percentile", 2 / 8)
    assert [found.boot_low, found.boot_high, found.low, found.high] == pytest.approx([0.1] * 4)
    assert math.isnan(found.d_z)


def test_a_single_pair_can_show_nothing():
    found = stats.paired([0.4])
    assert (found.mean, found.p, found.smallest_p, found.boot_method) == (0.4, 1, 1, "none")
    assert all(map(math.isnan, [found.sd, found.d_z, found.low, found.high, found.boot_low, found.boot_high]))


def test_methods_that_are_alike_in_every_seed_do_not_differ():
    for n in (8, 14):
        found = stats.paired([0.0] * n)
        assert (found.p, found.mean, found.ties) == (1, 0, n)


def test_ties_are_differences_of_zero():
    found = stats.paired([0.02, 0.01, -0.01, 0, 0, 0.05])
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)


def test_beyond_12_pairs_ranks_decide_as_in_scipy():
    values = 0.4 + draws(4, 20)
    found = stats.paired(values)
    assert found.test == "exact Wilcoxon signed rank"
    assert found.p == pytest.approx(reference.wilcoxon(values, method="exact").pvalue)


def test_zeros_are_dropped_and_named():
    values = [0.0, 0.0, *(0.4 + draws(5, 15))]
    found = stats.paired(values)
    assert found.test == "exact Wilcoxon signed rank, zeros dropped: 2"
    assert found.p == pytest.approx(reference.wilcoxon(values[2:], method="exact").pvalue)


def test_tied_ranks_are_normal_in_name_and_number():
    values = [*range(1, 14), -1, -2]
    found = stats.paired(values)
    assert found.test == "Wilcoxon signed rank, normal approximation"
    assert found.p == pytest.approx(reference.wilcoxon(values, method="asymptotic").pvalue)
    assert stats.paired(1 + draws(6, 51)).test == "Wilcoxon signed rank, normal approximation"


def test_few_tied_differences_among_zeros_are_not_made_significant_by_approximation():
    found = stats.paired([0.1] * 5 + [0.0] * 10)
    assert (found.test, found.p) == ("exact Wilcoxon signed rank, zeros dropped: 10", 2 / 32)
    assert reference.wilcoxon([0.1] * 5, method="asymptotic").pvalue < 0.05


def test_few_tied_ranks_are_tried_out():
    """One of eight equal differences is negative: 1 + 8 of 256 patterns are as extreme, on either side."""
    assert stats.signed_rank([1] * 7 + [-1] + [0] * 6)[1] == 18 / 256


def test_ranks_tie_where_rounding_alone_tells_them_apart():
    nearly = [0.1, 0.3 - 0.2, 0.4 - 0.3] * 5
    assert len(set(nearly)) == 3
    assert stats.signed_rank(nearly) == stats.signed_rank([1] * 15)


@given(differences=DIFFERENCES, data=st.data())
def test_the_order_of_seeds_does_not_matter(differences, data):
    again = stats.paired(data.draw(st.permutations(differences)))
    assert repr(again) == repr(stats.paired(differences))  # nan equals nan in text


@given(differences=DIFFERENCES)
def test_exchanging_the_methods_exchanges_the_signs(differences):
    one, two = stats.paired(differences), stats.paired([-value for value in differences])
    assert (one.p, one.test, one.wins, one.ties) == (pytest.approx(two.p), two.test, two.losses, two.ties)
    assert [one.mean, *interval(one)] == pytest.approx([-two.mean, -two.high, -two.low], nan_ok=True, abs=1e-12)


@given(differences=DIFFERENCES, shift=POINTS)
def test_a_shift_of_all_differences_shifts_the_intervals(differences, shift):
    one, two = stats.paired(differences), stats.paired([value + shift for value in differences])
    moved = [one.mean + shift, one.low + shift, one.high + shift]
    assert moved == pytest.approx([two.mean, *interval(two)], nan_ok=True, abs=1e-9)


@given(differences=DIFFERENCES)
def test_the_unit_of_the_metric_changes_no_test(differences):
    one, two = stats.paired(differences), stats.paired([100 * value for value in differences])
    assert (one.p, one.d_z) == pytest.approx((two.p, two.d_z), nan_ok=True)


@given(differences=DIFFERENCES)
def test_no_p_is_below_the_smallest(differences):
    found = stats.paired(differences)
    assert found.smallest_p <= found.p <= 1


@given(differences=st.lists(POINTS, min_size=13, max_size=80))
def test_ranks_are_never_surer_than_all_sign_patterns_allow(differences):
    found = stats.signed_rank([abs(value) for value in differences])[1]
    assert stats.smallest_p(len(differences)) <= found <= 1


@given(differences=st.lists(POINTS, min_size=6, max_size=6), level=st.sampled_from([0.04, 0.1, 0.25]))
def test_whatever_the_differences_no_more_than_the_level_of_their_sign_patterns_is_significant(differences, level):
    patterns = (np.arange(64)[:, None] >> np.arange(6) & 1) * 2 - 1
    found = [stats.sign_flip(signs * differences) for signs in patterns]
    assert np.mean(np.array(found) <= level) <= level


# Families


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_gives_the_values_that_statsmodels_publishes():
    """statsmodels/stats/tests/test_multi.py, column Holm, which its authors took from R's multtest."""
    ps = [5.23656777208e-05, 0.00028140506198, 0.0149877310796, 0.0202732688798, 0.177096952723, 0.642193923795]
    ps += [0.680845947633, 0.71626938238, 0.838541367553, 0.967833824309]
    theirs = [5.23656777208e-04, 2.53264555782e-03, 1.1990184863680001e-01, 1.4191288215860001e-01] + [1] * 6
    assert stats.holm(ps) == pytest.approx(theirs)


def test_a_comparison_without_p_is_no_member_of_the_family():
    found = stats.holm([0.02, math.nan, 0.01])
    assert [found[0], found[2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])
    assert stats.holm([]) == []


@given(ps=PS)
def test_holm_keeps_the_order_and_lowers_nothing(ps):
    found = np.array(stats.holm(ps))
    assert ((found >= ps) & (found <= 1)).all()
    assert (np.diff(found[np.argsort(ps, kind="stable")]) >= 0).all()


def test_nothing_true_is_rejected_more_often_than_the_level():
    """Three methods against the same baseline, all alike, 8 seeds: any rejection after Holm is a false one."""
    score = draws(7, 1500, 4, 8) + 2 * draws(8, 1500, 1, 8)  # seeds are easy or hard for all methods
    families = [stats.holm([stats.sign_flip(row) for row in one[1:] - one[0]]) for one in score]
    share = np.mean([min(family) <= 0.05 for family in families])
    assert 0.02 <= share <= 0.05  # not by never rejecting


def test_a_single_test_rejects_as_often_as_its_patterns_allow():
    share = np.mean([stats.sign_flip(row) <= 0.05 for row in draws(9, 3000, 8)])
    assert share == pytest.approx(12 / 256, abs=0.012)  # 0.05 * 256 = 12.8 patterns


def test_ranks_reject_what_is_true_as_often_as_the_level():
    share = np.mean([stats.signed_rank(row)[1] <= 0.05 for row in draws(10, 600, 16)])
    assert share == pytest.approx(0.05, abs=0.027)


# Seeds


@pytest.mark.parametrize(("n", "p"), [(1, 1), (3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_the_smallest_p_is_that_of_seeds_that_all_agree(n, p):
    assert stats.smallest_p(n) == p == stats.paired([0.01 * (seed + 1) for seed in range(n)]).p


@pytest.mark.parametrize(
    ("family", "seeds"),
    [(1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (7, 9)],  # 2/64; 4/128, 6/128; 8/256, 12/256; 14/512
)
def test_seeds_needed_by_hand(family, seeds):
    assert stats.seeds_needed(family) == seeds
    assert stats.can_reach(seeds, family)
    assert not stats.can_reach(seeds - 1, family)


def test_a_smallest_p_at_the_level_reaches_it():
    assert stats.can_reach(5, level=0.0625)
    assert stats.seeds_needed(level=0.0625) == 5


# Resolution


@pytest.mark.parametrize(("d_z", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_known_numbers_of_pairs_resolve_small_medium_and_large_effects(d_z, n):
    """The n for 80 % power of a paired two-sided t test, as in any power table or in G*Power."""
    assert stats.resolution(1, n) <= d_z < stats.resolution(1, n - 1)


def test_a_difference_of_the_resolution_is_found_with_about_the_power():
    mean = stats.resolution(1, 8)
    share = np.mean([stats.sign_flip(row) <= 0.05 for row in mean + draws(11, 2000, 8)])
    assert 0.74 <= share <= 0.82  # the exact test finds a little less than the t test, 0.8


def test_resolution_has_the_unit_of_the_metric_and_grows_with_power_and_family():
    assert stats.resolution(0.02, 8) == pytest.approx(0.02 * stats.resolution(1, 8))
    assert stats.resolution(1, 8) < stats.resolution(1, 8, power=0.9) < stats.resolution(1, 8, power=0.9, level=0.01)
    assert stats.resolution(0, 8) == 0


def test_seeds_too_few_to_be_significant_resolve_nothing():
    assert stats.resolution(0.01, 5) == math.inf
    assert stats.resolution(0.01, 6) < math.inf
    assert stats.resolution(0.01, 6, level=0.05 / 3) == math.inf


@given(n=st.integers(2, 400), level=st.floats(1e-6, 0.4), power=st.floats(0.05, 0.99))
def test_resolution_has_an_answer_everywhere(n, level, power):
    found = stats.resolution(1, n, level=level, power=power)
    assert found >= 0
    assert math.isfinite(found) == stats.can_reach(n, level=level)


# Over settings


@pytest.mark.parametrize(
    ("level", "methods", "q"),
    [
        *((0.05, *pair) for pair in [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]),
        *((0.10, *pair) for pair in [(2, 1.645), (4, 2.291), (10, 2.920)]),
    ],
)
def test_critical_differences_have_the_quantiles_of_demsars_table(level, methods, q):
    """Table 5a, rounded or cut to three decimals; with N settings q is multiplied by √(k(k+1)/(6N))."""
    found = stats.critical_difference(methods, 7, level) / math.sqrt(methods * (methods + 1) / 42)
    assert found == pytest.approx(q, abs=1e-3)


def test_demsars_example_gives_his_ranks_and_critical_difference():
    values = np.array(DEMSAR.split(), dtype=float).reshape(14, 4)
    found = stats.average_ranks(table_of(values))
    assert found.mean == pytest.approx({"a": 3.143, "b": 2.000, "c": 2.893, "d": 1.964}, abs=5e-4)
    assert list(found.mean) == ["d", "b", "c", "a"]
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert (found.settings, found.left_out) == (14, ())


def test_ties_share_their_ranks():
    found = stats.average_ranks({"0.1": {"x": 0.5, "y": 0.7, "z": 0.7}, "1": {"x": 0.9, "y": 0.8, "z": 0.7}})
    assert found.mean == {"y": 1.75, "x": 2, "z": 2.25}  # y and z: 1.5 each, then 2 and 3; x: 3, then 1


def test_a_method_missing_in_a_setting_is_left_out_and_the_others_are_ranked_as_if_it_never_was():
    whole = table_of(draws(12, 5, 3))
    holed = {at: {"extra": 9.0, **row} if at != "s2" else row for at, row in whole.items()}
    assert stats.average_ranks(holed) == replace(stats.average_ranks(whole), left_out=("extra",))


def test_what_cannot_be_tested_over_settings_is_nan():
    alone = stats.average_ranks({"s": {"a": 1.0}})
    assert alone.mean == {"a": 1}
    assert math.isnan(alone.critical_difference)
    disjoint = stats.average_ranks({"s": {"a": 1.0}, "t": {"b": 1.0}})
    assert (disjoint.mean, disjoint.left_out) == ({}, ("a", "b"))


@given(values=st.lists(st.lists(POINTS, min_size=4, max_size=4), min_size=2, max_size=6))
def test_ranks_sum_to_the_same_and_depend_on_no_scale_or_order(values):
    found = stats.average_ranks(table_of(values))
    assert sum(found.mean.values()) == pytest.approx(10)
    again = stats.average_ranks(table_of([[3 * value for value in row] for row in reversed(values)]))
    assert again.mean == pytest.approx(found.mean)


def test_wins_and_losses_over_settings_are_the_significant_ones():
    better, worse = stats.paired([1, 2, 3, 4, 5, 6]), stats.paired([-1, -2, -3, -4, -5, -6])
    unsure = stats.paired([1, 2, 3, 4, 5, -6])
    assert stats.win_tie_loss([better, unsure, worse, better]) == (2, 1, 1)
    assert stats.win_tie_loss([replace(better, p=0.06)]) == (0, 1, 0)  # after Holm
    assert stats.win_tie_loss([better], level=0.01) == (0, 1, 0)
    assert stats.win_tie_loss([]) == (0, 0, 0)


def test_ranks_that_are_significant_against_the_mean_decide_nothing():
    found = stats.paired([*(0.01 * seed for seed in range(1, 13)), -5])
    assert found.p < 0.05
    assert found.mean < 0
    assert stats.win_tie_loss([found]) == (0, 1, 0)


# Mistakes


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.paired([]), "there are no differences: give one"),
        (lambda: stats.mean_interval([]), "there are no values: give one"),
        (lambda: stats.paired([0.1, math.nan, math.inf]), r"2 of 3 differences are not finite \(at \[1, 2\]\): leave"),
        (lambda: stats.mean_interval([math.inf]), "1 of 1 values are not finite"),
        (lambda: stats.sign_flip([1.0] * 13), "13 pairs have too many sign patterns to try: use signed_rank"),
        (lambda: stats.holm([0.5, 1.5]), "lie between 0 and 1"),
        (lambda: stats.holm([-0.1]), "lie between 0 and 1"),
        (lambda: stats.average_ranks({}), "no settings to rank methods over: give"),
        (lambda: stats.average_ranks({"s": {"a": math.nan}}), "1 of 1 values of s are not finite"),
    ],
)
def test_mistakes_are_told_with_what_mends_them(call, says):
    with pytest.raises(ValueError, match=says):
        call()
