"""Numbers as text: accuracies in percent, differences in points."""

import math
from collections.abc import Sequence
from typing import Protocol

from simulations.analysis import sentences
from simulations.analysis.metric import Metric
from simulations.analysis.result import MethodResult

NOTHING = "-"


class Range(Protocol):
    """A mean and the ends of its interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def unit(metric: Metric) -> str:
    """` (%)`, ` (MB)`, or nothing."""
    text = "%" if metric.is_percent else metric.unit
    return f" ({text})" if text else ""


def figure(value: float | None, metric: Metric | None = None) -> str:
    """A number of a run: 74.23 for an accuracy, else 118 or 1.24."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if metric is not None and metric.is_percent:
        return sentences.value(value, metric)
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def spread(interval: Range | None, metric: Metric) -> str:
    """`74.23 ± 0.61`; the mean alone if the interval is unknown."""
    if interval is None:
        return NOTHING
    half = (interval.high - interval.low) / 2
    if not math.isfinite(interval.mean) or not math.isfinite(half):
        return figure(interval.mean, metric)
    return f"{figure(interval.mean, metric)} ± {figure(half, metric)}"


def gap(difference: Range | None, metric: Metric) -> str:
    """`+2.9 [1.9, 3.8]`, in points where the metric is a fraction."""
    if difference is None or not math.isfinite(difference.mean):
        return NOTHING
    ends = (metric.scale * number for number in (difference.mean, difference.low, difference.high))
    return interval("+.2f" if metric.is_percent else "+.3g", *ends)


def interval(form: str, mean: float, low: float, high: float) -> str:
    """`2.9 [1.9, 3.8]`, each number with the same format; the mean alone if an end is unknown."""
    if not math.isfinite(mean):
        return NOTHING
    return f"{mean:{form}}" + (f" [{low:{form}}, {high:{form}}]" if math.isfinite(low + high) else "")


def chance(result: MethodResult) -> str:
    """Holm's p with a star if it is significant; `no p of 3` if so few pairs cannot be significant."""
    if result.versus is None:
        return NOTHING
    if not math.isfinite(result.p):
        return f"no p of {result.versus.n}"
    return sentences.probability(result.p) + (" *" if result.is_significant else "")


def share(value: float | None) -> str:
    """`12 %`."""
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def count(number: int, thing: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def spans(seeds: Sequence[int]) -> str:
    """`1 to 5`, or `1, 2, 7`."""
    ordered = sorted(seeds)
    is_range = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]} to {ordered[-1]}" if is_range else ", ".join(map(str, ordered))


def listing(parts: Sequence[str], most: int = 6) -> str:
    """`a, b, c and 4 more`."""
    hidden = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {hidden} more" if hidden > 0 else "")
