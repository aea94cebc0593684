"""Published figures beside ours: the difference, and the interval that our seeds give it."""

import math
import re

from simulations.analysis.result import MethodResult, Verdict
from simulations.report import number_text, summary_table
from simulations.report.summary_table import Table

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def table(verdict: Verdict) -> Table | None:
    """A row for each figure that was published; None where there is none."""
    rows = []
    for result in summary_table.ordered(verdict):
        printed = ((verdict.question.published or {}).get(result.setting) or {}).get(result.method)
        if printed is not None:
            rows.append(_row(result, verdict, printed))
    if not rows:
        return None
    metric = verdict.question.metric
    unit = number_text.unit(metric)
    return Table(
        ("setting", "strategy", f"published{unit}", f"ours{unit}", "seeds", "ours minus published"), tuple(rows)
    )


def _row(result: MethodResult, verdict: Verdict, printed: str) -> tuple[str, ...]:
    """Published figures are percent for accuracies; their own spread is not in the interval of the difference."""
    if result.interval is None:
        return result.setting, result.method, printed, number_text.NOTHING, "0", number_text.NOTHING
    ends = (result.interval.mean, result.interval.low, result.interval.high)
    mean, low, high = (verdict.question.metric.scale * each for each in ends)
    number = _NUMBER.search(printed)
    there = float(number.group()) if number else math.nan
    ours, gap = _text(mean, low, high), _text(mean - there, low - there, high - there, "+")
    return result.setting, result.method, printed, ours, str(len(result.values)), gap


def _text(mean: float, low: float, high: float, sign: str = "") -> str:
    if not math.isfinite(mean):
        return number_text.NOTHING
    ends = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low + high) else ""
    return f"{mean:{sign}.2f}{ends}"
