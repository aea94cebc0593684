"""Published figures beside ours: the difference, and the interval from our seeds."""

import math
import re

from simulations.analysis.result import MethodResult, Verdict
from simulations.report import number_text, summary_table
from simulations.report.summary_table import Table

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def table(verdict: Verdict) -> Table | None:
    """A row per published figure; None if there is none."""
    published = verdict.question.published or {}
    rows = [
        _row(result, verdict, printed)
        for result in summary_table.ordered(verdict)
        if (printed := (published.get(result.setting) or {}).get(result.method)) is not None
    ]
    unit = number_text.unit(verdict.question.metric)
    headings = ("setting", "strategy", f"published{unit}", f"ours{unit}", "seeds", "ours minus published")
    return Table(headings, tuple(rows)) if rows else None


def _row(result: MethodResult, verdict: Verdict, printed: str) -> tuple[str, ...]:
    """Published accuracies are in percent; the interval of the difference ignores their own spread."""
    if result.interval is None:
        return result.setting, result.method, printed, number_text.NOTHING, "0", number_text.NOTHING
    scale, interval = verdict.question.metric.scale, result.interval
    ends = [scale * end for end in (interval.mean, interval.low, interval.high)]
    match = _NUMBER.search(printed)
    figure = float(match.group()) if match else math.nan
    gap = number_text.interval("+.2f", *(end - figure for end in ends))
    ours = number_text.interval(".2f", *ends)
    return result.setting, result.method, printed, ours, str(len(result.values)), gap
