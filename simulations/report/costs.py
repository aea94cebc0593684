"""Charts of what it cost: seconds by phase and bytes by kind of knowledge."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from simulations.analysis.result import MethodResult, Verdict
from simulations.analysis.run_record import RunRecord
from simulations.report import chart, number_text, summary_table
from simulations.report.chart import Chart, Row, Spec
from simulations.report.summary_table import Table

_PHASES = ("clients", "server", "evaluation")
_WAYS = ("up", "down")


def charts(verdict: Verdict) -> list[Chart]:
    """The charts that have data."""
    found = (
        _stacked(verdict, "seconds", "Seconds by phase", "seconds of a run", _seconds),
        _stacked(verdict, "bytes", "Bytes by kind of knowledge", "megabytes of a run", _bytes),
    )
    return [each for each in found if each is not None]


def _seconds(run: RunRecord) -> Mapping[str, float]:
    found = {phase: sum(row.get(phase) or 0.0 for row in run.timings) for phase in _PHASES}
    rest = sum(row.get("total") or 0.0 for row in run.timings) - sum(found.values())
    return {**found, "other": max(rest, 0.0)}


def _bytes(run: RunRecord) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for row in run.rows:
        for way in _WAYS:
            for kind, count in row["bytes"][way].items():
                found[f"{kind} {way}"] = found.get(f"{kind} {way}", 0.0) + count / 1e6
    return found


def _stacked(verdict: Verdict, name: str, title: str, axis: str, parts_of: object) -> Chart | None:
    assert callable(parts_of)
    rows = [
        row for result in summary_table.ordered(verdict) for row in _parts(result, [parts_of(m) for m in result.done])
    ]
    there = {row["panel"] for row in rows}
    if not there:
        return None
    panels = [setting for setting in verdict.question.settings if setting in there]
    kinds = list(dict.fromkeys(row["part"] for row in rows))
    methods = [method for method in verdict.question.methods if any(row["method"] == method for row in rows)]
    scale = {"domain": kinds, "range": chart.cycled(chart.COLOURS, len(kinds))}
    layer: Spec = {
        "mark": {"type": "bar", "style": "part"},
        "encoding": {
            "x": {"field": "value", "type": "quantitative", "title": axis, "axis": {"tickCount": 5}},
            "y": chart.method_axis(methods),
            "color": {"field": "part", "type": "nominal", "title": None, "scale": scale},
            "order": {"field": "order", "type": "quantitative"},
            "tooltip": [{"field": field} for field in ("method", "part", "value")],
        },
    }
    spec = chart.panels(rows, panels, [layer], height={"step": 26}, resolve=chart.OWN_Y)
    table = Table(
        ("setting", "strategy", "part", axis),
        tuple((row["panel"], row["method"], row["part"], number_text.figure(row["value"])) for row in rows),
    )
    summary = f"{axis.capitalize()}, mean over seeds, from left to right: {number_text.listing(kinds, 10)}."
    return Chart(name, title, summary, spec, table, least=250, margin=chart.label_room(verdict.question.methods))


def _parts(result: MethodResult, found: Sequence[Mapping[str, float]]) -> Iterator[Row]:
    kinds = list(dict.fromkeys(kind for each in found for kind in each))
    for order, kind in enumerate(kinds):
        mean = statistics.fmean(each.get(kind, 0.0) for each in found)
        if mean:
            place = {"panel": result.setting, "method": result.method}
            yield {**place, "part": kind, "value": chart.short(mean, 4), "order": order}
