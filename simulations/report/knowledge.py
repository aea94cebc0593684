"""Charts of knowledge: drift, forgetting, and the numbers that servers write to the ledger."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from simulations.analysis.metric import FORGETTING, Metric
from simulations.analysis.result import MethodResult, Verdict
from simulations.analysis.run_record import RunRecord
from simulations.report import chart, number_text, results, series, summary_table
from simulations.report.chart import Chart, Row
from simulations.report.summary_table import Table

_MEASURES = ("drift.weights", "drift.function", "drift.cosine", "local_accuracy.in", "local_accuracy.out")
_LABELS = {
    "local_accuracy.in": "in-local accuracy",
    "local_accuracy.out": "out-local accuracy",
    FORGETTING: "forgetting",
}
# Drawn first; the others follow in the order of the ledger.
_FIRST = (
    "teacher_agreement",
    "fidelity",
    "teacher_accuracy",
    "filter_gain",
    "harmed",
    "effective_senders",
    "without_sender",
)
_LOOKS = 10  # rounds that are searched for names: servers seldom record other numbers in other rounds


def drift(verdict: Verdict) -> Chart | None:
    """How far the students of a cohort are apart after training."""
    summary = (
        "How far the students of a round are apart after training: by distance of weights, by cosine of updates (1: "
        "all updates have the same direction), and by disagreement of their predictions (function)."
    )
    return _over_rounds(verdict, "drift", "Drift", summary, _MEASURES[:3])


def forgetting(verdict: Verdict) -> Chart | None:
    """Accuracy on the labels that are frequent at a client and on the others, and the loss by class."""
    summary = (
        "Accuracy in percent after local training, with each label weighted by its share at the client (in), or by the "
        "complement of that share (out): a low out means that the client forgot or never learned the others' classes. "
        "Forgetting: points of accuracy below a class's maximum so far, mean over classes (FedNTD's F)."
    )
    return _over_rounds(verdict, "forgetting", "Forgetting", summary, [*_MEASURES[3:], FORGETTING])


def scalars(verdict: Verdict) -> Chart | None:
    """Numbers that the server half records, by round."""
    names = _names(verdict, lambda value: isinstance(value, int | float) and not isinstance(value, bool))
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    summary = "Numbers that servers record per round; docs/diagnostics.md and each strategy's page define them."
    return _over_rounds(verdict, "knowledge", "Numbers from the servers", summary, [f"server.{name}" for name in names])


def matrices(verdict: Verdict) -> Chart | None:
    """Who learned from whom: the newest client x client table of the first seed."""
    shown: dict[str, list[Row]] = {}
    hidden: list[str] = []
    cells = 0
    for panel, cohort, matrix in _matrices(verdict):
        cells += sum(value != 0 for row in matrix for value in row)
        if shown and (cells > chart.MOST_CELLS or len(shown) >= chart.MOST_PANELS):
            hidden.append(panel)
        elif panel not in shown:
            shown[panel] = list(_cells(panel, cohort, matrix))
    rows = [row for rows in shown.values() for row in rows]
    if not rows:
        return None
    axis = {"labelOverlap": True, "labelAngle": 0, "ticks": False}
    x, y = ({"field": name, "type": "ordinal", "title": name, "axis": axis} for name in ("sender", "receiver"))
    most = max(row["weight"] for row in rows) or 1.0
    layer = chart.heat_map(x, y, "weight", "weight", most, ("receiver", "sender", "weight"))
    spec = chart.panels(rows, list(shown), [layer], height=260, resolve=chart.OWN_SCALES)
    table = Table(
        ("table", "receivers", "weight on themselves, mean", "others that weigh at least 1%, mean"),
        tuple(_matrix_row(panel, rows) for panel, rows in shown.items()),
    )
    summary = (
        "A row is a receiving client, a column a client whose knowledge it receives; empty: filtered out. Last round "
        "of the first seed." + (f" Not drawn: {number_text.listing(hidden)}." if hidden else "")
    )
    return Chart("matrices", "Who learned from whom", summary, spec, table, least=240, margin=64, square=True)


def lists(verdict: Verdict) -> Chart | None:
    """Numbers by class in the last round, such as coverage; mean over seeds."""
    rows: list[Row] = []
    for result in summary_table.ordered(verdict):
        for name in _names(verdict, _is_list):
            values = [numbers for run in result.done if (numbers := _last(run, name)) is not None]
            if values and len(set(map(len, values))) == 1:
                rows += _bars(result, name, values)
    names = list(dict.fromkeys(row["panel"] for row in rows))[: chart.MOST_PANELS]
    rows = [row for row in rows if row["panel"] in names]
    if not rows or len(rows) > chart.MOST_ROWS:
        return None
    methods = verdict.question.methods
    encoding = {
        "x": {"field": "index", "type": "ordinal", "title": "class", "axis": {"labelAngle": 0, "labelOverlap": True}},
        "y": chart.numbers("value", None),
        "color": chart.by_method(methods, chart.COLOURS),
        "shape": chart.by_method(methods, chart.SHAPES),
        "tooltip": chart.tooltip("method", "index", "value"),
    }
    layer = chart.points(60, encoding, opacity=0.9)
    spec = chart.panels(rows, names, [layer], height=170, resolve=chart.OWN_SCALES)
    table = Table(
        ("number", "strategy", "class", "value"),
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
    constant = _constant(rows)
    panels = list(dict.fromkeys(row["panel"] for row in rows if row["panel"] not in constant))
    if not panels:
        return None
    shown, hidden = panels[: chart.MOST_PANELS], panels[chart.MOST_PANELS :]
    most = max(chart.MOST_ROWS // len(shown), 1)
    kept = [row for panel in shown for row in _thinned([row for row in rows if row["panel"] == panel], most)]
    summary += " Mean and band over seeds."
    if constant:
        summary += f" Constant: {number_text.listing([f'{panel} {value:g}' for panel, value in constant.items()])}."
    if hidden:
        summary += f" Not drawn: {number_text.listing(hidden)}."
    spec = results.bands(kept, shown, verdict.question.methods, None, 150)
    return Chart(name, title, summary, spec, _last_rounds(kept), least=230)


def _constant(rows: Sequence[Row]) -> dict[str, float]:
    """Panels that would show a single number everywhere."""
    values: dict[str, set[float]] = {}
    for row in rows:
        values.setdefault(row["panel"], set()).update((row["low"], row["mean"], row["high"]))
    return {panel: numbers.pop() for panel, numbers in values.items() if len(numbers) == 1}


def _thinned(rows: Sequence[Row], most: int) -> Iterator[Row]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        yield from chart.thinned([row for row in rows if row["method"] == method], max(most // len(methods), 2))


def _last_rounds(rows: Sequence[Row]) -> Table:
    last = {(row["panel"], row["method"]): row for row in rows}
    cells = (
        (*key, str(row["round"]), *(number_text.figure(row[name]) for name in ("mean", "low", "high")))
        for key, row in last.items()
    )
    return Table(("number", "strategy", "round", "mean", "low", "high"), tuple(cells))


def _names(verdict: Verdict, matches: Callable[[Any], bool]) -> list[str]:
    """Keys of `server` with matching values, in the order of the ledger."""
    names: dict[str, None] = {}
    for result in verdict.results.values():
        for run in result.done[:1]:
            for row in chart.thinned(run.rows, _LOOKS):
                names.update((key, None) for key, value in _server(row).items() if matches(value))
    return list(names)


def _server(row: Mapping[str, Any]) -> Mapping[str, Any]:
    server = row.get("server")
    return server if isinstance(server, Mapping) else {}


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
                matrix = _server(row)[name]
                cohort = row["cohort"] if len(row.get("cohort", ())) == len(matrix) else range(len(matrix))
                yield ", ".join(filter(None, (result.method, name, result.setting))), cohort, matrix


def _cells(panel: str, cohort: Sequence[int], matrix: Sequence[Sequence[float]]) -> Iterator[Row]:
    for receiver, row in zip(cohort, matrix, strict=True):
        for sender, value in zip(cohort, row, strict=True):
            if value or sender == receiver:
                yield {"panel": panel, "receiver": receiver, "sender": sender, "weight": chart.short(value, 3)}


def _matrix_row(panel: str, rows: Sequence[Row]) -> tuple[str, ...]:
    own = [row["weight"] for row in rows if row["receiver"] == row["sender"]]
    others = sum(row["weight"] >= 0.01 for row in rows if row["receiver"] != row["sender"])
    return panel, str(len(own)), f"{statistics.fmean(own):.3f}", f"{others / len(own):.1f}"


def _bars(result: MethodResult, name: str, values: Sequence[Sequence[float]]) -> Iterator[Row]:
    for index, column in enumerate(zip(*values, strict=True)):
        mean = chart.short(statistics.fmean(column), 4)
        if mean is not None and math.isfinite(mean):
            yield {"panel": _panel(name, result), "method": result.method, "index": index, "value": mean}


def _panel(label: str, result: MethodResult) -> str:
    return f"{label}, {result.setting}" if result.setting else label
