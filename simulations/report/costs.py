"""Charts of costs: seconds by phase and bytes by kind of knowledge."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from simulations.analysis.result import MethodResult, Verdict
from simulations.analysis.run_record import RunRecord
from simulations.report import chart, number_text, summary_table
from simulations.report.chart import Chart, Row, Spec
from simulations.report.summary_table import Table

_PHASES = ("clients", "server", "evaluation")
_WAYS = ("up", "down")


def seconds(verdict: Verdict) -> Chart | None:
    return _stacked(verdict, "seconds", "Seconds by phase", "seconds of a run", _seconds)


def traffic(verdict: Verdict) -> Chart | None:
    return _stacked(verdict, "bytes", "Bytes by kind of knowledge", "megabytes of a run", _megabytes)


def _seconds(run: RunRecord) -> Mapping[str, float]:
    phases = {phase: sum(row.get(phase) or 0.0 for row in run.timings) for phase in _PHASES}
    rest = sum(row.get("total") or 0.0 for row in run.timings) - sum(phases.values())
    return {**phases, "other": max(rest, 0.0)}


def _megabytes(run: RunRecord) -> Mapping[str, float]:
    sums: dict[str, float] = {}
    for row in run.rows:
        for way in _WAYS:
            for kind, count in row["bytes"][way].items():
                sums[f"{kind} {way}"] = sums.get(f"{kind} {way}", 0.0) + count / 1e6
    return sums


def _stacked(
    verdict: Verdict, name: str, title: str, axis: str, parts_of: Callable[[RunRecord], Mapping[str, float]]
) -> Chart | None:
    results = summary_table.ordered(verdict)
    rows = [row for result in results for row in _parts(result, list(map(parts_of, result.done)))]
    if not rows:
        return None
    kinds = list(dict.fromkeys(row["part"] for row in rows))
    scale = {"domain": kinds, "range": chart.cycled(chart.COLOURS, len(kinds))}
    layer: Spec = {
        "mark": {"type": "bar", "style": "part"},
        "encoding": {
            "x": {"field": "value", "type": "quantitative", "title": axis, "axis": {"tickCount": 5}},
            "y": chart.method_axis(chart.methods(verdict, rows)),
            "color": {"field": "part", "type": "nominal", "title": None, "scale": scale},
            "order": {"field": "order", "type": "quantitative"},
            "tooltip": chart.tooltip("method", "part", "value"),
        },
    }
    spec = chart.panels(rows, chart.settings(verdict, rows), [layer], height={"step": 26}, resolve=chart.OWN_Y)
    table = Table(
        ("setting", "strategy", "part", axis),
        tuple((row["panel"], row["method"], row["part"], number_text.figure(row["value"])) for row in rows),
    )
    summary = f"{axis.capitalize()}, mean over seeds, from left to right: {number_text.listing(kinds, 10)}."
    return Chart(name, title, summary, spec, table, least=250, margin=chart.label_room(verdict.question.methods))


def _parts(result: MethodResult, runs: Sequence[Mapping[str, float]]) -> Iterator[Row]:
    for order, kind in enumerate(dict.fromkeys(kind for parts in runs for kind in parts)):
        mean = statistics.fmean(parts.get(kind, 0.0) for parts in runs)
        if mean:
            part = {"part": kind, "value": chart.short(mean, 4), "order": order}
            yield {"panel": result.setting, "method": result.method, **part}
