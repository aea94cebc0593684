"""Charts of rates: no band and no axis shows what cannot be measured."""

import re

import fabricated
import pytest

from simulations.analysis import metric
from simulations.report import files, results, vega

_MINUS = "\u2212"  # as charts write it
_NUMBER = re.compile(rf">({_MINUS}?[\d.,]+)</text>")


def near(level: float, method: str, seed: int) -> fabricated.RunRecord:
    """A run whose accuracies lie at one end of their range, on both sides of it in turns: the interval reaches out."""
    found = fabricated.member(method, seed)
    end = level + (0.02 if seed % 2 else 0.0) * (1 if level < 0.5 else -1)
    rows = [
        {
            **row,
            "accuracy": {"clients": {"mean": end, "worst_decile": end}, "global": end},
            "server": {"teacher_agreement": end},
            "drift": {"function": end},
        }
        for row in found.rows
    ]
    return fabricated.replace(found, rows=rows)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_charts_of_rates_do_not_go_below_0_or_above_100(level: float) -> None:
    verdict = fabricated.verdict([near(level, method, seed) for method in ("fedavg", "knfu") for seed in range(4)])
    interval = verdict.results["", "knfu"].interval
    assert interval is not None
    assert interval.low < 0 or interval.high > 1  # Student's interval knows no bounds
    for chart in files.drawn(verdict):
        if chart.name in ("curves", "pareto", "knowledge", "drift"):
            top = 100 if chart.name in ("curves", "pareto") else 1
            ends = [row[name] for row in chart.spec["data"]["values"] for name in ("mean", "low", "high")]
            assert all(0 <= end <= top for end in ends), chart.name
        if chart.name == "curves":
            ticks = [float(text.replace(_MINUS, "-")) for text in _NUMBER.findall(vega.svg(chart))]
            assert all(0 <= tick <= 100 for tick in ticks)
    assert not re.search(r"interval -|to 10[1-9]", " ".join(verdict.sentences))


@pytest.mark.parametrize(
    ("path", "bounds"),
    [
        ("global", (0.0, 1.0)),
        ("clients.worst_decile", (0.0, 1.0)),
        ("local_accuracy.in", (0.0, 1.0)),
        ("forgetting", (-1.0, 1.0)),
        ("server.teacher_agreement", (0.0, 1.0)),
        ("server.filter_gain", (float("-inf"), float("inf"))),
        ("drift.cosine", (-1.0, 1.0)),
        ("bytes.up", (0.0, float("inf"))),
        ("accuracy.loss", (float("-inf"), float("inf"))),
    ],
)
def test_what_a_number_can_be_follows_from_what_is_measured(path: str, bounds: tuple[float, float]) -> None:
    assert metric.parse(path).bounds == bounds


def test_one_method_is_not_drawn_as_unbeaten() -> None:
    alone = fabricated.verdict([fabricated.member("knfu", seed) for seed in range(3)])
    assert results.pareto(alone) is None
    assert results.pareto(fabricated.verdict()) is not None


def test_bars_of_ranks_do_not_go_beyond_the_first_and_the_last() -> None:
    verdict = fabricated.verdict()
    found = results.ranks(verdict)
    assert found is not None
    assert verdict.ranks is not None
    assert verdict.ranks.critical_difference > 0
    rows, last = found.spec["data"]["values"], len(verdict.ranks.mean)
    assert min(row["low"] for row in rows) == 1
    assert max(row["high"] for row in rows) == last
    assert all(row["low"] <= row["rank"] <= row["high"] for row in rows)
