"""The verdict: pairs, their statistics, and what is said where there is too little to say anything."""

import math
from dataclasses import replace

import fabricated
import handmade
import pytest

from fedkd.errors import ConfigError
from simulations.analysis import analyse, sentences, stats
from simulations.report import run_tables

CLEAR = [0.02, 0.03, 0.025, 0.03, 0.02, 0.028, 0.031, 0.022]


def entry(verdict, method="fedgen", setting=""):
    return verdict.results[setting, method]


def test_a_clear_lead_is_significant_and_said_with_its_interval():
    verdict = analyse.analyse(handmade.question(), handmade.paired(CLEAR))
    expected = stats.paired(CLEAR)
    found = entry(verdict)
    assert found.versus.mean == pytest.approx(expected.mean)
    assert (found.versus.low, found.versus.high) == pytest.approx((expected.low, expected.high))
    assert found.p == pytest.approx(2 / 2**8)
    assert found.is_significant
    said = " ".join(verdict.sentences)
    assert "fedgen has the best global last" in said
    assert (
        f"Significantly above fedavg: fedgen {sentences.difference(found.versus, verdict.question.metric)} points"
        in said
    )
    assert verdict.records["fedgen"] == (1, 0, 0)


def test_clients_that_never_took_part_are_told_apart_where_each_has_its_own_student():
    found = fabricated.members(("",), ("local", "fedproto"), range(2))
    for row in (row for each in found for row in each.rows):
        row["accuracy"]["trained"] = {"count": 2, "clients": {"mean": 0.9}}
    assert "trained" not in fabricated.verdict(found).question.columns
    found = [replace(each, info={**each.info, "client_student": "own"}) for each in found]
    verdict = fabricated.verdict(found)
    assert entry(verdict, "local").columns["trained"] == pytest.approx(0.9)
    assert "4 clients never took part" in run_tables.remark(found[0])


def test_three_seeds_are_not_enough_and_no_p_is_given():
    verdict = analyse.analyse(handmade.question(seeds=3), handmade.paired(CLEAR[:3]))
    assert math.isnan(entry(verdict).p)
    assert not entry(verdict).is_significant
    assert any("3 paired seeds cannot show" in text and "6 seeds suffice" in text for text in verdict.cautions)
    assert "too few seeds for a test: fedgen +2.50" in " ".join(verdict.sentences)
    assert ", p " not in " ".join(verdict.sentences)


def test_what_is_tested_and_not_significant_is_not_shown_to_differ():
    verdict = analyse.analyse(handmade.question(), handmade.paired([0.01, -0.01, 0.02, -0.02, 0.01, 0.01, -0.01, 0.0]))
    assert entry(verdict).p > stats.LEVEL
    assert "No significant difference from fedavg: fedgen +0.13" in " ".join(verdict.sentences)
    assert verdict.records["fedgen"] == (0, 1, 0)


def test_holm_counts_all_comparisons_of_all_settings():
    """Two methods in two settings: the smallest p is multiplied by 4."""
    settings, methods = ("a", "b"), ("fedavg", "fedgen", "fedprox")
    members = [m for at in settings for m in handmade.paired(CLEAR, setting=at)]
    members += [m for at in settings for m in handmade.paired(CLEAR, "fedprox", at) if m.method == "fedprox"]
    verdict = analyse.analyse(handmade.question(methods, settings=settings), members)
    assert entry(verdict, "fedgen", "a").p == pytest.approx(4 * 2 / 2**8)
    assert verdict.ranks.mean["fedavg"] == 3
    assert verdict.ranks.settings == 2


def test_seeds_under_another_split_are_not_paired():
    members = handmade.paired(CLEAR)
    odd = replace(members[0], info={**members[0].info, "partition_sha256": "another"})
    verdict = analyse.analyse(handmade.question(), [odd, *members[1:]])
    assert entry(verdict).versus.n == 7
    assert any(
        text.startswith("Other partition than the baseline's, so not paired: fedgen") for text in verdict.cautions
    )


def test_other_initial_weights_or_cohorts_are_told():
    members = handmade.paired(CLEAR)
    odd = replace(members[0], info={**members[0].info, "initial_sha256": {"mlp": "another"}})
    verdict = analyse.analyse(handmade.question(), [odd, *members[1:]])
    assert any(text.startswith("Other initial weights") for text in verdict.cautions)


def test_failed_runs_do_not_count_and_are_named():
    members = handmade.paired(CLEAR)
    broken = replace(members[0], state="failed", reason="no quorum")
    verdict = analyse.analyse(handmade.question(), [broken, *members[1:]])
    assert verdict.failed == (broken,)
    assert entry(verdict).versus.n == 7
    assert any("1 of 16 runs do not count: fedgen, seed 0" in text for text in verdict.cautions)


def test_nothing_done_is_no_verdict():
    none = [replace(member, state="failed", reason="no quorum") for member in handmade.paired(CLEAR)]
    verdict = analyse.analyse(handmade.question(), none)
    assert verdict.sentences == ("No run is done: there is nothing to conclude.",)
    assert entry(verdict).interval is None


def test_a_metric_that_no_run_has_is_an_error():
    with pytest.raises(ConfigError, match=r"no run has the metric 'common\.mean last'"):
        analyse.analyse(handmade.question(primary="common.mean last"), handmade.paired(CLEAR))


def test_a_method_without_the_metric_has_no_place():
    """FedAvg among methods whose students are personal, say."""
    without = [
        replace(m, rows=[{**row, "accuracy": {"clients": row["accuracy"]["clients"]}} for row in m.rows])
        for m in handmade.paired(CLEAR)
        if m.method == "fedgen"
    ]
    base = [m for m in handmade.paired(CLEAR) if m.method == "fedavg"]
    verdict = analyse.analyse(handmade.question(), [*without, *base])
    assert any("fedgen: the ledger has no `global`" in text for text in verdict.cautions)


def test_less_is_better_where_a_cost_is_asked():
    verdict = analyse.analyse(handmade.question(primary="drift.weights last"), handmade.paired(CLEAR))
    assert entry(verdict).versus.mean == pytest.approx(stats.paired(CLEAR).mean)  # drift falls as accuracy rises
    assert verdict.best("").method == "fedgen"


def test_the_price_of_a_target_counts_rounds_bytes_and_seconds():
    """The mean of rounds 3 to 5 is the first to reach 0.6: 5 rounds of 3.5 MB and 2 s."""
    run = handmade.member(accuracy=(0.4, 0.5, 0.5, 0.6, 0.7, 0.8))
    assert analyse.price_of(run, handmade.question().metric, 0.6) == pytest.approx((5.0, 17.5, 10.0))
    assert analyse.price_of(run, handmade.question().metric, 0.75) is None


def test_a_target_that_half_of_the_seeds_never_reach_has_no_median():
    runs = [handmade.member("fedgen", k, (0.9,) * 3 if k < 2 else (0.1,) * 3) for k in range(4)]
    runs += [handmade.member("fedavg", k, (0.9,) * 3) for k in range(4)]
    verdict = analyse.analyse(handmade.question(target=0.8, seeds=4), runs)
    assert (entry(verdict).price.rounds, entry(verdict).price.reached, entry(verdict).price.num_runs) == (None, 2, 4)
    assert entry(verdict, "fedavg").price.rounds == 3


def test_who_is_harmed_is_told_by_local_training():
    """Of three clients one is worse off than alone; equal is not harmed."""
    ours = handmade.member("fedgen", clients=(0.5, 0.7, 0.9))
    alone = handmade.member("local", clients=(0.6, 0.7, 0.8))
    verdict = analyse.analyse(handmade.question(("local", "fedgen"), seeds=1), [ours, alone])
    assert entry(verdict).harmed == pytest.approx(1 / 3)
    assert entry(verdict, "local").harmed is None


def test_optimistic_rules_and_public_sets_are_flagged():
    public = handmade.paired(CLEAR)
    public = [replace(m, info={**m.info, "proxy": {"name": "unused"}}) if m.method == "fedgen" else m for m in public]
    verdict = analyse.analyse(handmade.question(primary="global top5"), public)
    assert any("optimistic" in text for text in verdict.cautions)
    assert any(
        text.startswith("fedgen: with a public set of samples")
        for text in verdict.cautions
        for text in verdict.cautions
    )


def test_more_seeds_resolve_smaller_differences():
    few = analyse.analyse(handmade.question(seeds=6), handmade.paired(CLEAR[:6]))
    many = analyse.analyse(handmade.question(seeds=8), handmade.paired(CLEAR))
    assert 0 < many.resolution["fedgen"] < few.resolution["fedgen"] < math.inf


def test_a_mean_of_more_rounds_than_a_run_has_is_told_with_the_metric_of_its_last_round():
    verdict = analyse.analyse(handmade.question(primary="global last10"), handmade.paired(CLEAR))
    (text,) = (each for each in verdict.cautions if "shorter than the 10 of 'global last10'" in each)
    assert text.endswith("For the last round alone: --metric 'global last'.")
    verdict = analyse.analyse(handmade.question(primary="global last"), handmade.paired(CLEAR))
    assert not any("shorter than" in each for each in verdict.cautions)
