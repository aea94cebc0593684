"""The records of runs by round, averaged over seeds: means with bands, and the cost up to a round."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulations.analysis import stats
from simulations.analysis.metric import Metric, megabytes
from simulations.analysis.result import MethodResult
from simulations.analysis.run_record import RunRecord
from simulations.report import chart
from simulations.report.chart import Row

SEEDS_FOR_INTERVAL = 3  # with fewer, a band is the range of all values
_LEAST_POINTS, _MOST_POINTS = 12, 60  # of a curve


@dataclass(frozen=True)
class Point:
    """The runs of a result at one round: mean and band of a number, and the cost so far."""

    round: int
    megabytes: float
    seconds: float
    mean: float
    low: float
    high: float
    seeds: int


def points(result: MethodResult, metric: Metric, most: int) -> list[Point]:
    """At most `most` rounds, each over the runs that count and have the number in that round."""
    by_round: dict[int, list[tuple[RunRecord, float]]] = {}
    for run in result.done:
        for number, value in metric.curve(run):
            by_round.setdefault(number, []).append((run, value))
    spent = {id(run): costs(run) for run in result.done} if by_round else {}
    kept = chart.thinned(sorted(by_round.items()), most)
    return [_point(metric, number, values, [spent[id(run)] for run, _ in values]) for number, values in kept]


def costs(run: RunRecord) -> Mapping[int, tuple[float, float]]:
    """Round -> megabytes and seconds from the start to its end."""
    seconds = {row["round"]: float(row.get("total") or 0.0) for row in run.timings}
    spent, sent, passed = {}, 0.0, 0.0
    for row in run.rows:
        sent += megabytes(row, "all")
        passed += seconds.get(row["round"], 0.0)
        spent[row["round"]] = sent, passed
    return spent


def rows(results: Sequence[MethodResult], metric: Metric, panel: Callable[[MethodResult], str]) -> Iterator[Row]:
    """Rows of a chart with bands, thinned so that all curves together fit a chart's size."""
    most = min(max(chart.MOST_ROWS // max(len(results), 1), _LEAST_POINTS), _MOST_POINTS)
    for result in results:
        for point in points(result, metric, most):
            yield {
                "panel": panel(result),
                "method": result.method,
                "round": point.round,
                "mb": chart.short(point.megabytes),
                "s": chart.short(point.seconds),
                "mean": chart.short(metric.scale * point.mean),
                "low": chart.short(metric.scale * point.low),
                "high": chart.short(metric.scale * point.high),
            }


def band(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean; with fewer than three values their range."""
    if len(values) < SEEDS_FOR_INTERVAL:
        return min(values), max(values)
    interval = stats.mean_interval(values)
    return interval.low, interval.high


def _point(
    metric: Metric,
    number: int,
    by_run: Sequence[tuple[RunRecord, float]],
    spent: Sequence[Mapping[int, tuple[float, float]]],
) -> Point:
    values = [value for _, value in by_run]
    low, high = map(metric.clipped, band(values))
    paid = [costs[number] for costs in spent if number in costs] or [(0.0, 0.0)]
    sent, passed = map(statistics.fmean, zip(*paid, strict=True))
    return Point(number, sent, passed, statistics.fmean(values), low, high, len(values))
