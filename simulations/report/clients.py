"""Charts of clients: accuracy, gain or harm by joining, and the partition."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from simulations.analysis.result import LOCAL, MethodResult, Verdict, own_accuracy
from simulations.analysis.run_record import RunRecord
from simulations.report import chart, number_text, summary_table
from simulations.report.chart import Chart, Row, Spec
from simulations.report.summary_table import Table

Place = tuple[str, str]  # setting, method
Value = tuple[int, int, float]  # seed, client, number


def distribution(verdict: Verdict) -> Chart | None:
    """Each client's own accuracy, its quartiles, the worst tenth marked."""
    by_place = {(result.setting, result.method): _accuracies(result) for result in summary_table.ordered(verdict)}
    by_place = {place: values for place, values in by_place.items() if values}
    if not by_place:
        return None
    most = max(chart.MOST_MARKS // len(by_place), 20)
    rows = [row for place, values in by_place.items() for row in _marked(place, values, most)]
    lowest = min(by_place, key=lambda place: _worst_tenth(by_place[place]))
    level = f"{100 * _worst_tenth(by_place[lowest]):.2f}%"
    summary = (
        "One mark per client and seed, from the last evaluation on its own test split; box: quartiles, line: median. "
        + (f"Lowest worst tenth: {_named(lowest)}, {level}." if len(by_place) > 1 else f"Worst tenth: {level}.")
    )
    spec, room = _strips(verdict, rows, "own accuracy (%)", "worst tenth"), chart.label_room(verdict.question.methods)
    return Chart("clients", "Accuracy per client", summary, spec, _quantiles(by_place), least=260, margin=room)


def gains(verdict: Verdict) -> Chart | None:
    """Each client's own accuracy minus that under local training, same seed."""
    alone = {result.setting: result for result in verdict.results.values() if is_alone(result)}
    by_place = {
        (result.setting, result.method): values
        for result in summary_table.ordered(verdict)
        if result.setting in alone and not is_alone(result) and (values := _gains(result, alone[result.setting]))
    }
    if not by_place:
        return None
    most = max(chart.MOST_MARKS // len(by_place), 20)
    rows = [row for place, values in by_place.items() for row in _signed(place, values, most)]
    spec = _strips(verdict, rows, "gain over training alone, points", "harmed", [chart.ZERO_LINE])
    table = Table(
        ("setting", "strategy", "clients", "mean gain", "harmed", "largest loss", "largest gain"),
        tuple(_gain_row(place, values) for place, values in by_place.items()),
    )
    harmed = max(by_place, key=lambda place: _harmed(by_place[place]))
    summary = (
        "One mark per client and seed; a client left of the dashed line does better alone. "
        f"{'Most harmed' if len(by_place) > 1 else 'Harmed'}: {_named(harmed)}, "
        f"{number_text.share(_harmed(by_place[harmed]))} of clients."
    )
    room = chart.label_room(verdict.question.methods)
    return Chart("gain", "Gain or loss by joining, per client", summary, spec, table, least=260, margin=room)


def partitions(verdict: Verdict) -> Chart | None:
    """The share of each class in each client's training samples; the first seed of each setting."""
    shown, hidden = _partitions(verdict)
    rows = [row for setting, run in shown.items() for row in _shares(setting, run)]
    if not rows:
        return None
    x = {"field": "client", "type": "ordinal", "axis": {"labelOverlap": True, "labelAngle": 0, "ticks": False}}
    y = {"field": "class", "type": "ordinal", "axis": {"labelOverlap": True, "ticks": False}}
    most, tips = max(row["share"] for row in rows), ("client", "class", "share", "samples")
    layer = chart.heat_map(x, y, "share", "% of the client", most, tips)
    spec = chart.panels(rows, list(shown), [layer], height={"step": 14}, resolve=chart.OWN_SCALES)
    omitted = f" Not drawn: {number_text.listing(hidden)}." if hidden else ""
    summary = "Clients from left to right, classes from top to bottom; empty: none of that class. First seed." + omitted
    return Chart("partition", "Classes per client", summary, spec, least=260, margin=64)


def is_alone(result: MethodResult) -> bool:
    """Whether the clients train without exchange."""
    return any(run.info.get("strategy") == LOCAL for run in result.runs)


def _accuracies(result: MethodResult) -> list[Value]:
    return [(run.seed, client, value) for run in result.done for client, value in own_accuracy(run).items()]


def _gains(result: MethodResult, alone: MethodResult) -> list[Value]:
    """Paired by seed, client and partition."""
    before = {(run.seed, _split(run)): own_accuracy(run) for run in alone.done}
    return [
        (run.seed, client, value - local[client])
        for run in result.done
        if (local := before.get((run.seed, _split(run))))
        for client, value in own_accuracy(run).items()
        if client in local
    ]


def _split(run: RunRecord) -> str | None:
    return run.info.get("partition_sha256")


def _marked(place: Place, values: Sequence[Value], most: int) -> Iterator[Row]:
    ordered = sorted(values, key=lambda value: value[2])
    worst = {value[:2] for value in ordered[: math.ceil(len(ordered) / 10)]}
    for value in chart.thinned(ordered, most):
        yield _mark(place, value, "worst tenth" if value[:2] in worst else "others")


def _signed(place: Place, values: Sequence[Value], most: int) -> Iterator[Row]:
    for value in chart.thinned(sorted(values, key=lambda value: value[2]), most):
        yield _mark(place, value, "harmed" if value[2] < 0 else "others")


def _mark(place: Place, value: Value, group: str) -> Row:
    seed, client, number = value
    mark = {"client": client, "seed": seed, "value": chart.short(100 * number, 4), "group": group}
    return {"panel": place[0], "method": place[1], **mark}


def _strips(verdict: Verdict, rows: Sequence[Row], title: str, low: str, below: Sequence[Spec] = ()) -> Spec:
    """A mark per client, a box over them. Colour and length both mark the worst clients."""
    x, y = chart.numbers("value", title), chart.method_axis(chart.methods(verdict, rows))
    scale = {"domain": [low, "others"], "range": ["#D55E00", "#56B4E9"]}
    marks = {
        "mark": {"type": "tick", "thickness": 1.5, "opacity": 0.75},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "group", "type": "nominal", "title": None, "scale": scale},
            "size": {"condition": {"test": "datum.group != 'others'", "value": 26}, "value": 13},
            "tooltip": chart.tooltip("method", "client", "seed", "value", "group"),
        },
    }
    box = {"mark": {"type": "boxplot", "extent": "min-max", "size": 12}, "encoding": {"x": x, "y": y}}
    names, layers = chart.settings(verdict, rows), [*below, marks, box]
    return chart.panels(rows, names, layers, height={"step": 38}, resolve=chart.OWN_SCALES)


def _partitions(verdict: Verdict) -> tuple[dict[str, RunRecord], list[str]]:
    """The first seed of each setting, as long as there is room; equal partitions once."""
    shown: dict[str, RunRecord] = {}
    hidden, seen, done, cells = [], set(), set(), 0
    for result in summary_table.ordered(verdict):
        run = next((run for run in result.runs if run.partition.get("labels")), None)
        if run is None or result.setting in done:
            continue
        done.add(result.setting)
        sha, labels = run.info.get("partition_sha256"), run.partition["labels"]
        cells += sum(count > 0 for row in labels for count in row)
        if (sha and sha in seen) or (cells > chart.MOST_CELLS and shown) or len(shown) >= chart.MOST_PANELS:
            hidden.append(f"{result.setting} (the same)" if sha in seen else result.setting)
            continue
        seen.add(sha)
        shown[result.setting] = run
    return shown, hidden


def _shares(setting: str, run: RunRecord) -> Iterator[Row]:
    labels = run.partition["labels"]
    for client in chart.thinned(range(len(labels)), max(chart.MOST_CELLS // max(len(labels[0]), 1), 1)):
        total = sum(labels[client]) or 1
        for label, count in enumerate(labels[client]):
            if count:
                share = chart.short(100 * count / total, 3)
                yield {"panel": setting, "client": client, "class": label, "share": share, "samples": count}


def _quantiles(by_place: Mapping[Place, Sequence[Value]]) -> Table:
    rows = []
    for place, values in by_place.items():
        numbers = [number for *_, number in values]
        cuts = statistics.quantiles(numbers, n=4) if len(numbers) > 1 else numbers * 3
        columns = (_worst_tenth(values), statistics.fmean(numbers), min(numbers), *cuts, max(numbers))
        rows.append((*place, str(len(numbers)), *(f"{100 * number:.2f}" for number in columns)))
    cut = ("least", "quartile", "median", "quartile", "most")
    return Table(("setting", "strategy", "clients x seeds", "worst tenth (%)", "mean", *cut), tuple(rows))


def _worst_tenth(values: Sequence[Value]) -> float:
    ordered = sorted(number for *_, number in values)
    return statistics.fmean(ordered[: math.ceil(len(ordered) / 10)])


def _gain_row(place: Place, values: Sequence[Value]) -> tuple[str, ...]:
    points = [100 * number for *_, number in values]
    mean, low, high = (f"{number:+.1f}" for number in (statistics.fmean(points), min(points), max(points)))
    return *place, str(len(points)), mean, number_text.share(_harmed(values)), low, high


def _harmed(values: Sequence[Value]) -> float:
    return statistics.fmean(number < 0 for *_, number in values)


def _named(place: Place) -> str:
    setting, method = place
    return f"{method} in {setting}" if setting else method
