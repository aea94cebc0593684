"""The closing screen: plain lines with the table, the verdict, and what failed."""

import re

import fabricated

from simulations import report
from simulations.analysis import metric
from simulations.report import files, summary_table


def test_first_line_says_how_much_was_played() -> None:
    line = report.screen(fabricated.verdict())[0]
    assert line == "skew: 24 of 24 runs   baseline fedavg   4 paired seeds   clients.mean last, mean ± 95% interval"


def test_table_has_a_line_for_each_method_and_setting() -> None:
    lines = report.screen(fabricated.verdict())
    assert lines[1].split() == [
        "setting",
        "strategy",
        "runs",
        "clients.mean",
        "(%)",
        "vs",
        "fedavg",
        "p",
        "(Holm)",
        "worst",
        "tenth",
        "(%)",
        "harmed",
        "rounds,",
        "MB,",
        "s",
        "to",
        "0.5",
        "s/round",
    ]
    assert [line.split()[2] for line in lines[2:8]] == ["fedavg", "fedgen", "local"] * 2
    assert lines[2].split()[3:6] == ["4", "of", "4"]


def test_p_is_withheld_where_seeds_cannot_reach_it() -> None:
    few = summary_table.table(fabricated.verdict(fabricated.members(seeds=range(3))))
    assert few.rows[1][few.headings.index("p (Holm)")] == "no p of 3"
    many = summary_table.table(fabricated.verdict(fabricated.members(seeds=range(9))))
    assert many.rows[1][many.headings.index("p (Holm)")].endswith("*")


def test_one_setting_has_no_column_for_it() -> None:
    assert summary_table.table(fabricated.verdict(fabricated.members(settings=("",)))).headings[0] == "strategy"


def test_target_that_nobody_reaches_is_never() -> None:
    table = summary_table.table(fabricated.verdict(target=0.99))
    assert {row[table.headings.index("rounds, MB, s to 0.99")] for row in table.rows} == {"never"}


def test_failed_runs_are_listed_with_their_reasons() -> None:
    found = fabricated.members()
    found[0] = fabricated.replace(found[0], state="failed", reason="quorum is 5")
    assert report.screen(fabricated.verdict(found))[-1] == "failed  fedavg, alpha 0.1, seed 0: quorum is 5"


def test_costs_are_better_when_lower() -> None:
    verdict = fabricated.verdict(metric=metric.parse("bytes.all sum"), columns={})
    table = summary_table.table(verdict)
    gap = table.headings.index("vs fedavg")
    assert table.rows[2][0:2] == ("alpha 0.1", "local")
    assert table.rows[2][gap].startswith("+0.96")  # sends 12 x 80 kB less


def test_optimistic_metric_is_marked() -> None:
    assert "optimistic" in report.screen(fabricated.verdict(metric=metric.parse("clients.pooled top5")))[0]


def test_one_run_declares_no_winner() -> None:
    verdict = fabricated.verdict([fabricated.member("knfu")])
    said = " ".join([*report.screen(verdict), *(chart.summary for chart in files.drawn(verdict))])
    assert "knfu has clients.mean last" in said
    assert not re.search(r"\b(best|Best|before|unbeaten|Lowest)\b", said)


def test_one_method_that_has_a_value_has_not_won_against_those_that_failed() -> None:
    found = [
        each if each.method == "fedgen" else fabricated.replace(each, state="failed", reason="no memory", rows=())
        for each in fabricated.members(settings=("",))
    ]
    said = fabricated.verdict(found).sentences[0]
    assert "best" not in said
    assert said.endswith("no other method has a value, so nothing is compared.")


def test_equal_methods_are_level_and_none_is_best() -> None:
    found = [fabricated.member("fedavg", seed) for seed in range(3)]
    twins = [fabricated.replace(each, method="knfu") for each in found]
    said = fabricated.verdict([*found, *twins]).sentences[0]
    assert said.startswith("fedavg and knfu have the same clients.mean last")
