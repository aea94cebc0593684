"""What runs recorded by round, joined over seeds: means with bands, and what a round had cost by then."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulations.analysis import stats
from simulations.analysis.metric import Metric, megabytes
from simulations.analysis.result import MethodResult
from simulations.analysis.run_record import RunRecord
from simulations.report import chart
from simulations.report.chart import Row

SEEDS_FOR_INTERVAL = 3  # with fewer, a band is all that was seen
_LEAST_POINTS, _MOST_POINTS = 12, 60  # of a curve


@dataclass(frozen=True)
class Point:
    """The runs of an result at one round: mean and band of a number, and what was spent by then."""

    round: int
    megabytes: float
    seconds: float
    mean: float
    low: float
    high: float
    seeds: int


def points(result: MethodResult, metric: Metric, most: int) -> list[Point]:
    """At most so many rounds, over the runs that count and have the number in that round."""
    found: dict[int, list[tuple[RunRecord, float]]] = {}
    for run in result.done:
        for number, value in metric.curve(run):
            found.setdefault(number, []).append((run, value))
    spent = {id(run): costs(run) for run in result.done} if found else {}
    kept = chart.thinned(sorted(found.items()), most)
    return [_point(metric, number, at, [spent[id(m)] for m, _ in at]) for number, at in kept]


def costs(run: RunRecord) -> Mapping[int, tuple[float, float]]:
    """Round -> megabytes and seconds from the start to its end."""
    seconds = {row["round"]: float(row.get("total") or 0.0) for row in run.timings}
    found, sent, passed = {}, 0.0, 0.0
    for row in run.rows:
        sent += megabytes(row, "all")
        passed += seconds.get(row["round"], 0.0)
        found[row["round"]] = sent, passed
    return found


def rows(results: Sequence[MethodResult], metric: Metric, panel: Callable[[MethodResult], str]) -> Iterator[Row]:
    """Rows of a chart with bands, thinned so that all curves together keep to a chart's size."""
    most = min(max(chart.MOST_ROWS // max(len(results), 1), _LEAST_POINTS), _MOST_POINTS)
    factor = metric.scale
    for result in results:
        for at in points(result, metric, most):
            yield {
                "panel": panel(result),
                "method": result.method,
                "round": at.round,
                "mb": chart.short(at.megabytes),
                "s": chart.short(at.seconds),
                "mean": chart.short(factor * at.mean),
                "low": chart.short(factor * at.low),
                "high": chart.short(factor * at.high),
            }


def band(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean, or least and most with fewer than three values."""
    if len(values) < SEEDS_FOR_INTERVAL:
        return min(values), max(values)
    interval = stats.mean_interval(values)
    return interval.low, interval.high


def _point(
    metric: Metric,
    number: int,
    at: Sequence[tuple[RunRecord, float]],
    spent: Sequence[Mapping[int, tuple[float, float]]],
) -> Point:
    values = [value for _, value in at]
    low, high = map(metric.clipped, band(values))
    paid = [costs[number] for costs in spent if number in costs] or [(0.0, 0.0)]
    sent, passed = (statistics.fmean(each) for each in zip(*paid, strict=True))
    return Point(number, sent, passed, statistics.fmean(values), low, high, len(values))
