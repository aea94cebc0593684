"""Charts of clients: their accuracy, gains and harm by joining, and the partition."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from simulations.analysis.result import LOCAL, MethodResult, Verdict, own_accuracy
from simulations.analysis.run_record import RunRecord
from simulations.report import chart, number_text, summary_table
from simulations.report.chart import Chart, Row, Spec
from simulations.report.summary_table import Table

_MOST_CELLS = 8_000  # of all pictures of partitions together


def charts(verdict: Verdict) -> list[Chart]:
    """The charts that have data."""
    found = (distribution(verdict), gains(verdict), partitions(verdict))
    return [each for each in found if each is not None]


def distribution(verdict: Verdict) -> Chart | None:
    """Each client's own accuracy, its quartiles, the worst tenth marked."""
    found = {(e.setting, e.method): _own(e) for e in summary_table.ordered(verdict)}
    found = {place: values for place, values in found.items() if values}
    if not found:
        return None
    most = max(chart.MOST_MARKS // len(found), 20)
    rows = [row for place, values in found.items() for row in _marked(*place, values, most)]
    spec = _strips(verdict, rows, "own accuracy (%)", "worst tenth")
    lowest = min(found, key=lambda place: _worst_tenth(found[place]))
    level = f"{100 * _worst_tenth(found[lowest]):.2f}%"
    summary = (
        "One mark a client and seed, at its last evaluation on its own test split; box: quartiles, line: median. "
        + (f"Lowest worst tenth: {_named(lowest)}, {level}." if len(found) > 1 else f"Worst tenth: {level}.")
    )
    title = "How clients fare"
    return Chart(
        "clients",
        title,
        summary,
        spec,
        _quantiles(found),
        least=260,
        margin=chart.label_room(verdict.question.methods),
    )


def gains(verdict: Verdict) -> Chart | None:
    """Each client's own accuracy minus that under local training, same seed."""
    alone = {result.setting: result for result in verdict.results.values() if is_alone(result)}
    found = {}
    for result in summary_table.ordered(verdict):
        if result.setting in alone and not is_alone(result) and (values := _gains(result, alone[result.setting])):
            found[result.setting, result.method] = values
    if not found:
        return None
    most = max(chart.MOST_MARKS // len(found), 20)
    rows = [row for place, values in found.items() for row in _signed(*place, values, most)]
    spec = _strips(verdict, rows, "gain over training alone, points", "harmed", zero=True)
    table = Table(
        ("setting", "strategy", "clients", "mean gain", "harmed", "largest loss", "largest gain"),
        tuple(_gain_row(place, values) for place, values in found.items()),
    )
    harmed = max(found, key=lambda place: _harmed(found[place]))
    summary = (
        "One mark per client and seed; left of the dashed line a client would have done better alone. "
        f"{'Most harmed' if len(found) > 1 else 'Harmed'}: {_named(harmed)}, "
        f"{number_text.share(_harmed(found[harmed]))} of clients."
    )
    return Chart(
        "gain",
        "Who gains by joining, who loses",
        summary,
        spec,
        table,
        least=260,
        margin=chart.label_room(verdict.question.methods),
    )


def partitions(verdict: Verdict) -> Chart | None:
    """Which share of each client's training samples has which class; the first seed of each setting."""
    shown, hidden = _partitions(verdict)
    rows = [row for setting, run in shown.items() for row in _shares(setting, run)]
    if not rows:
        return None
    x = {"field": "client", "type": "ordinal", "axis": {"labelOverlap": True, "labelAngle": 0, "ticks": False}}
    y = {"field": "class", "type": "ordinal", "axis": {"labelOverlap": True, "ticks": False}}
    scale = {"type": "sqrt", "range": "ramp", "domain": [0, max(row["share"] for row in rows)]}
    tone = {"field": "share", "type": "quantitative", "title": "% of the client", "scale": scale}
    layer = {"mark": {"type": "rect"}, "encoding": {"x": x, "y": y, "color": tone, "tooltip": _fields(rows[0])}}
    spec = chart.panels(rows, list(shown), [layer], height={"step": 14}, resolve=chart.OWN_SCALES)
    kept = f" Not drawn: {number_text.listing(hidden)}." if hidden else ""
    summary = "Clients from left to right, classes from top to bottom; empty: none of that class. First seed." + kept
    return Chart("partition", "Who holds what", summary, spec, least=260, margin=64)


def is_alone(result: MethodResult) -> bool:
    """Whether its clients train without exchange."""
    return any(run.info.get("strategy") == LOCAL for run in result.runs)


def _own(result: MethodResult) -> list[tuple[int, int, float]]:
    return [(m.seed, client, value) for m in result.done for client, value in own_accuracy(m).items()]


def _gains(result: MethodResult, alone: MethodResult) -> list[tuple[int, int, float]]:
    """Paired by seed and client, under one partition only."""
    before = {(run.seed, _split(run)): own_accuracy(run) for run in alone.done}
    return [
        (run.seed, client, value - there[client])
        for run in result.done
        if (there := before.get((run.seed, _split(run))))
        for client, value in own_accuracy(run).items()
        if client in there
    ]


def _split(run: RunRecord) -> str | None:
    return run.info.get("partition_sha256")


def _marked(setting: str, method: str, values: Sequence[tuple[int, int, float]], most: int) -> Iterator[Row]:
    ordered = sorted(values, key=lambda found: found[2])
    worst = {found[:2] for found in ordered[: -(-len(ordered) // 10)]}
    for seed, client, value in chart.thinned(ordered, most):
        low = "worst tenth" if (seed, client) in worst else "others"
        yield _mark(setting, method, seed, client, value, low)


def _signed(setting: str, method: str, values: Sequence[tuple[int, int, float]], most: int) -> Iterator[Row]:
    for seed, client, value in chart.thinned(sorted(values, key=lambda found: found[2]), most):
        yield _mark(setting, method, seed, client, value, "harmed" if value < 0 else "others")


def _mark(setting: str, method: str, seed: int, client: int, value: float, low: str) -> Row:
    own = {"client": client, "seed": seed, "value": chart.short(100 * value, 4), "who": low}
    return {"panel": setting, "method": method, **own}


def _strips(verdict: Verdict, rows: Sequence[Row], title: str, low: str, *, zero: bool = False) -> Spec:
    """A mark per client, a box over them. Colour and length both mark the worst."""
    there = {row["panel"] for row in rows}
    names = [setting for setting in verdict.question.settings if setting in there]
    methods = [method for method in verdict.question.methods if any(row["method"] == method for row in rows)]
    x, y = chart.numbers("value", title), chart.method_axis(methods)
    who = {"field": "who", "type": "nominal", "title": None}
    marks = {
        "mark": {"type": "tick", "thickness": 1.5, "opacity": 0.75},
        "encoding": {
            "x": x,
            "y": y,
            "color": {**who, "scale": {"domain": [low, "others"], "range": ["#D55E00", "#56B4E9"]}},
            "size": {"condition": {"test": "datum.who != 'others'", "value": 26}, "value": 13},
            "tooltip": _fields(rows[0]),
        },
    }
    box = {
        "mark": {"type": "boxplot", "extent": "min-max", "size": 12},
        "encoding": {"x": x, "y": y},
    }
    rule = {"mark": {"type": "rule", "strokeDash": [4, 4], "style": "guide"}, "encoding": {"x": {"datum": 0}}}
    return chart.panels(
        rows, names, [*([rule] if zero else []), marks, box], height={"step": 38}, resolve=chart.OWN_SCALES
    )


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
        if (sha and sha in seen) or (cells > _MOST_CELLS and shown) or len(shown) >= chart.MOST_PANELS:
            hidden.append(f"{result.setting} (the same)" if sha in seen else result.setting)
            continue
        seen.add(sha)
        shown[result.setting] = run
    return shown, hidden


def _shares(setting: str, run: RunRecord) -> Iterator[Row]:
    labels = run.partition["labels"]
    for client in chart.thinned(range(len(labels)), max(_MOST_CELLS // max(len(labels[0]), 1), 1)):
        total = sum(labels[client]) or 1
        for label, count in enumerate(labels[client]):
            if count:
                share = chart.short(100 * count / total, 3)
                yield {"panel": setting, "client": client, "class": label, "share": share, "samples": count}


def _quantiles(found: Mapping[tuple[str, str], Sequence[tuple[int, int, float]]]) -> Table:
    rows = []
    for (setting, method), own in found.items():
        values = [value for *_, value in own]
        cuts = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        spread = (min(values), *cuts, max(values))
        numbers = (_worst_tenth(own), statistics.fmean(values), *spread)
        rows.append((setting, method, str(len(values)), *(f"{100 * value:.2f}" for value in numbers)))
    cut = ("least", "quartile", "median", "quartile", "most")
    return Table(("setting", "strategy", "clients x seeds", "worst tenth (%)", "mean", *cut), tuple(rows))


def _worst_tenth(own: Sequence[tuple[int, int, float]]) -> float:
    values = sorted(value for *_, value in own)
    return statistics.fmean(values[: -(-len(values) // 10)])


def _gain_row(place: tuple[str, str], own: Sequence[tuple[int, int, float]]) -> tuple[str, ...]:
    values = [100 * value for *_, value in own]
    ends = (
        f"{statistics.fmean(values):+.1f}",
        number_text.share(_harmed(own)),
        f"{min(values):+.1f}",
        f"{max(values):+.1f}",
    )
    return *place, str(len(values)), *ends


def _harmed(own: Sequence[tuple[int, int, float]]) -> float:
    return statistics.fmean(value < 0 for *_, value in own)


def _named(place: tuple[str, str]) -> str:
    setting, method = place
    return f"{method} in {setting}" if setting else method


def _fields(row: Row) -> list[Spec]:
    return [{"field": name} for name in row if name != "panel"]
