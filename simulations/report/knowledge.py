"""Charts of what was exchanged: drift, forgetting, and the findings that servers leave in the ledger."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulations.analysis.metric import FORGETTING, Metric
from simulations.analysis.result import MethodResult, Verdict
from simulations.analysis.run_record import RunRecord
from simulations.report import chart, number_text, results, series, summary_table
from simulations.report.chart import Chart, Row, Spec
from simulations.report.summary_table import Table

_MEASURES = ("drift.weights", "drift.function", "drift.cosine", "local_accuracy.in", "local_accuracy.out")
_LABELS = {
    "local_accuracy.in": "in-local accuracy",
    "local_accuracy.out": "out-local accuracy",
    FORGETTING: "forgetting",
}
# Read first, so drawn first; then the others in the order of the ledger.
_FIRST = (
    "teacher_agreement",
    "fidelity",
    "teacher_accuracy",
    "filter_gain",
    "harmed",
    "effective_senders",
    "without_sender",
)
_MOST_CELLS = 8_000  # of all matrices together
_LOOKS = 10  # rounds that are looked at for names: servers seldom find other things in other rounds


def charts(verdict: Verdict) -> list[Chart]:
    """The charts that have data."""
    found = (drift(verdict), forgetting(verdict), scalars(verdict), matrices(verdict), lists(verdict))
    return [each for each in found if each is not None]


def drift(verdict: Verdict) -> Chart | None:
    """How far the students of a cohort stand apart after training."""
    summary = (
        "How far the students of a round stand apart after their training: by distance of weights, by cosine of "
        "updates (1: all pull the same way), and by disagreement of their answers (function)."
    )
    return _over_rounds(verdict, "drift", "Drift", summary, _MEASURES[:3])


def forgetting(verdict: Verdict) -> Chart | None:
    """Accuracy on the labels that clients hold much of and on the others, and what was lost class by class."""
    summary = (
        "Accuracy in percent after local training with each label weighted by its client's share of it (in), and "
        "against that share (out): low out means that what others know was forgotten, or never learned. Forgetting: "
        "points of accuracy that a class has lost since the round in which it had most, mean over classes (FedNTD's F)."
    )
    return _over_rounds(verdict, "forgetting", "Forgetting", summary, [*_MEASURES[3:], FORGETTING])


def scalars(verdict: Verdict) -> Chart | None:
    """Numbers that the server half found, round by round."""
    names = _names(verdict, lambda value: isinstance(value, int | float) and not isinstance(value, bool))
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    summary = "What the servers wrote down in each round, as defined in docs/diagnostics.md and each strategy's page."
    return _over_rounds(verdict, "knowledge", "What the servers found", summary, [f"server.{name}" for name in names])


def matrices(verdict: Verdict) -> Chart | None:
    """Who learned from whom: the newest client x client table of the first seed."""
    shown: dict[str, list[Row]] = {}
    hidden: list[str] = []
    cells = 0
    for panel, cohort, found in _matrices(verdict):
        cells += sum(value != 0 for row in found for value in row)
        if shown and (cells > _MOST_CELLS or len(shown) >= chart.MOST_PANELS):
            hidden.append(panel)
        elif panel not in shown:
            shown[panel] = list(_cells(panel, cohort, found))
    rows = [row for found in shown.values() for row in found]
    if not rows:
        return None
    axis = {"labelOverlap": True, "labelAngle": 0, "ticks": False}
    top = max(row["weight"] for row in rows) or 1.0
    x = {"field": "sender", "type": "ordinal", "title": "sender", "axis": axis}
    y = {"field": "receiver", "type": "ordinal", "title": "receiver", "axis": axis}
    tone = {
        "field": "weight",
        "type": "quantitative",
        "title": "weight",
        "scale": {"type": "sqrt", "range": "ramp", "domain": [0, top]},
    }
    tips = [{"field": name} for name in ("receiver", "sender", "weight")]
    layer = {"mark": {"type": "rect"}, "encoding": {"x": x, "y": y, "color": tone, "tooltip": tips}}
    spec = chart.panels(rows, list(shown), [layer], height=260, resolve=chart.OWN_SCALES)
    table = Table(
        ("table", "receivers", "weight on themselves, mean", "others that weigh at least 1%, mean"),
        tuple(_matrix_row(panel, found) for panel, found in shown.items()),
    )
    summary = (
        "A row is a client that receives, a column one whose knowledge it is given; empty: filtered out. Last round "
        "of the first seed." + (f" Not drawn: {number_text.listing(hidden)}." if hidden else "")
    )
    return Chart("matrices", "Who learned from whom", summary, spec, table, least=240, margin=64, square=True)


def lists(verdict: Verdict) -> Chart | None:
    """Numbers by class, such as the coverage of what is received, in the last round; mean over seeds."""
    rows: list[Row] = []
    for result in summary_table.ordered(verdict):
        for name in _names(verdict, _is_list):
            values = [found for run in result.done if (found := _last(run, name)) is not None]
            if values and len({len(each) for each in values}) == 1:
                rows += _bars(result, name, values)
    names = list(dict.fromkeys(row["panel"] for row in rows))[: chart.MOST_PANELS]
    rows = [row for row in rows if row["panel"] in names]
    if not rows or len(rows) > chart.MOST_ROWS:
        return None
    methods = verdict.question.methods
    x = {"field": "index", "type": "ordinal", "title": "class", "axis": {"labelAngle": 0, "labelOverlap": True}}
    layer: Spec = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
        "encoding": {
            "x": x,
            "y": chart.numbers("value", None),
            "color": chart.colour(methods),
            "shape": chart.shape(methods),
            "tooltip": [{"field": name} for name in ("method", "index", "value")],
        },
    }
    spec = chart.panels(rows, names, [layer], height=170, resolve=chart.OWN_SCALES)
    table = Table(
        ("what", "strategy", "class", "value"),
        tuple((row["panel"], row["method"], str(row["index"]), f"{row['value']:g}") for row in rows[:400]),
    )
    summary = "By class, in the last round, mean over seeds."
    return Chart("classes", "Knowledge by class", summary, spec, table, least=300)


def _over_rounds(verdict: Verdict, name: str, title: str, summary: str, paths: Sequence[str]) -> Chart | None:
    """A panel for each number and setting."""
    rows: list[Row] = []
    for path in paths:
        label = _LABELS.get(path, path.partition(".")[2].replace("_", " "))
        metric = Metric(path, "last")
        rows += series.rows(summary_table.ordered(verdict), metric, lambda result, label=label: _panel(label, result))  # type: ignore[misc]
    flat = _constant(rows)
    every = list(dict.fromkeys(row["panel"] for row in rows if row["panel"] not in flat))
    if not every:
        return None
    shown = every[: chart.MOST_PANELS]
    most = max(chart.MOST_ROWS // len(shown), 1)
    kept = [row for panel in shown for row in _fitting([row for row in rows if row["panel"] == panel], most)]
    same = (
        f" Always the same: {number_text.listing([f'{key} {value:g}' for key, value in flat.items()])}." if flat else ""
    )
    left = f" Not drawn: {number_text.listing(every[len(shown) :])}." if len(every) > len(shown) else ""
    summary += f" Mean and band over seeds.{same}{left}"
    spec = results.bands(kept, shown, verdict.question.methods, None, 150)
    return Chart(name, title, summary, spec, _last_rounds(kept), least=230)


def _constant(rows: Sequence[Row]) -> dict[str, float]:
    """Panels that would show one number all over."""
    values: dict[str, set[float]] = {}
    for row in rows:
        values.setdefault(row["panel"], set()).update((row["low"], row["mean"], row["high"]))
    return {panel: found.pop() for panel, found in values.items() if len(found) == 1}


def _fitting(rows: Sequence[Row], most: int) -> Iterator[Row]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        yield from chart.thinned([row for row in rows if row["method"] == method], max(most // len(methods), 2))


def _last_rounds(rows: Sequence[Row]) -> Table:
    last = {(row["panel"], row["method"]): row for row in rows}
    cells = (
        (*place, str(row["round"]), *(number_text.figure(row[name]) for name in ("mean", "low", "high")))
        for place, row in last.items()
    )
    return Table(("what", "strategy", "round", "mean", "low", "high"), tuple(cells))


def _names(verdict: Verdict, wanted: Any) -> list[str]:
    """Keys of `server` whose values are such, in the order of the ledger."""
    found: dict[str, None] = {}
    for result in verdict.results.values():
        for run in result.done[:1]:
            for row in chart.thinned(run.rows, _LOOKS):
                found.update((key, None) for key, value in _server(row).items() if wanted(value))
    return list(found)


def _server(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found = row.get("server")
    return found if isinstance(found, Mapping) else {}


def _last(run: RunRecord, name: str) -> list[float] | None:
    return next((value for row in reversed(run.rows) if _is_list(value := _server(row).get(name))), None)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(part, int | float) for part in value)


def _is_square(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(row, list) and len(row) == len(value) for row in value)
        and all(isinstance(cell, int | float) for row in value for cell in row)
    )


def _matrices(verdict: Verdict) -> Iterator[tuple[str, Sequence[int], list[list[float]]]]:
    for result in summary_table.ordered(verdict):
        for name in _names(verdict, _is_square):
            rows = result.done[0].rows if result.done else ()
            row = next((row for row in reversed(rows) if _is_square(_server(row).get(name))), None)
            if row is not None:
                found = _server(row)[name]
                cohort = row["cohort"] if len(row.get("cohort", ())) == len(found) else range(len(found))
                yield ", ".join(part for part in (result.method, name, result.setting) if part), cohort, found


def _cells(panel: str, cohort: Sequence[int], found: Sequence[Sequence[float]]) -> Iterator[Row]:
    for receiver, row in zip(cohort, found, strict=True):
        for sender, value in zip(cohort, row, strict=True):
            if value or sender == receiver:
                yield {"panel": panel, "receiver": receiver, "sender": sender, "weight": chart.short(value, 3)}


def _matrix_row(panel: str, found: Sequence[Row]) -> tuple[str, ...]:
    own = [row["weight"] for row in found if row["receiver"] == row["sender"]]
    others = sum(row["weight"] >= 0.01 for row in found if row["receiver"] != row["sender"])
    return panel, str(len(own)), f"{statistics.fmean(own):.3f}", f"{others / len(own):.1f}"


def _bars(result: MethodResult, name: str, values: Sequence[Sequence[float]]) -> Iterator[Row]:
    for index, column in enumerate(zip(*values, strict=True)):
        mean = chart.short(statistics.fmean(column), 4)
        if mean is not None and math.isfinite(mean):
            yield {"panel": _panel(name, result), "method": result.method, "index": index, "value": mean}


def _panel(label: str, result: MethodResult) -> str:
    return f"{label}, {result.setting}" if result.setting else label
