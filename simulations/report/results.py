"""Charts of results: differences from the baseline, ranks, curves, and accuracy against bytes."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from simulations.analysis.metric import Metric
from simulations.analysis.result import MethodResult, Verdict
from simulations.report import chart, number_text, series, summary_table
from simulations.report.chart import Chart, Row, Spec
from simulations.report.summary_table import Table

AXES = {"rounds": ("round", "rounds"), "megabytes": ("mb", "megabytes, both ways"), "seconds": ("s", "seconds")}
_BYTES = Metric("bytes.all", "sum")
_WHOLE = "datum.value % 1 ? '' : format(datum.value, ',d')"  # there is no round 1.5
_FEW = 12  # rounds; a curve with no more has a mark per round


def differences(verdict: Verdict) -> Chart | None:
    """How much better than the baseline each method is, paired by seed, with the interval."""
    question, results = verdict.question, summary_table.ordered(verdict)
    rows = [_difference(result, question.metric.scale) for result in results if result.versus is not None]
    if not rows:
        return None
    methods = [method for method in question.methods if method != question.baseline]
    unit = f", {question.metric.unit}" if question.metric.unit else ""
    title = f"better than {question.baseline} by{unit}"
    tips = ("method", "mean", "low", "high", "pairs")
    layers = [chart.ZERO_LINE, *_intervals("mean", title, methods, question.methods, tips)]
    significant = sum(result.is_significant for result in results)
    summary = (
        f"Paired difference from {question.baseline} with its 95% interval, by setting; right of the dashed line is "
        f"better. {significant} of {len(rows)} differences are significant after Holm's correction."
    )
    spec = chart.panels(rows, chart.settings(verdict, rows), layers, height={"step": 30}, resolve=chart.OWN_SCALES)
    title, room = "Difference from the baseline", chart.label_room(question.methods)
    return Chart("differences", title, summary, spec, _test_table(verdict), margin=room)


def ranks(verdict: Verdict) -> Chart | None:
    """Average ranks with bars of half a critical difference to each side: bars of equal methods overlap."""
    ranks, methods = verdict.ranks, verdict.question.methods
    if ranks is None or len(ranks.mean) < 2:
        return None
    half = ranks.critical_difference / 2 if math.isfinite(ranks.critical_difference) else 0.0
    worst = len(ranks.mean)  # ranks lie between 1 and this, and so does the overlap of two bars
    rows: list[Row] = [
        {"panel": "", "method": method, "rank": rank, "low": max(rank - half, 1), "high": min(rank + half, worst)}
        for method, rank in ranks.mean.items()
    ]
    axis = {"tickMinStep": 0.5, "tickCount": 5, "labelOverlap": True}
    layers = _intervals(
        "rank", "average rank, 1 is best", list(ranks.mean), methods, ("method", "rank"), opacity=0.6, axis=axis
    )
    best = next(iter(ranks.mean))
    summary = f"Average rank over {number_text.count(ranks.settings, 'setting')}; {best} ranks best. " + (
        f"Two methods differ if their ranks are {ranks.critical_difference:.2f} apart (critical difference): "
        "that is, if their bars do not overlap."
        if half
        else "There is no critical difference: too few settings or methods."
    )
    spec = chart.panels(rows, [""], layers, height={"step": 30})
    return Chart("ranks", "Average ranks", summary, spec, _rank_table(verdict), margin=chart.label_room(methods))


def _intervals(
    middle: str, title: str, shown: Sequence[str], methods: Sequence[str], tips: Sequence[str], **looks: Any
) -> list[Spec]:
    """Two layers, a row per shown method: a bar from low to high, and a mark in the middle."""
    axis = {"axis": looks.pop("axis")} if "axis" in looks else {}
    y, colour = chart.method_axis(shown), chart.by_method(methods, chart.COLOURS, legend=None)
    ends = {"x": chart.numbers("low", title, **axis), "x2": {"field": "high"}, "y": y, "color": colour}
    shape = chart.by_method(methods, chart.SHAPES, legend=None)
    mean = {"x": chart.numbers(middle, title, **axis), "y": y, "color": colour, "shape": shape}
    return [
        {"mark": {"type": "rule", "strokeWidth": 3, **looks}, "encoding": ends},
        chart.points(90, {**mean, "tooltip": chart.tooltip(*tips)}, opacity=1),
    ]


def curves(verdict: Verdict) -> Chart | None:
    """The primary metric by rounds, megabytes or seconds."""
    question, results = verdict.question, summary_table.ordered(verdict)
    rows = list(series.rows(results, question.metric, lambda result: result.setting))
    if not rows:
        return None
    least = min(len(result.done) for result in results if result.done)
    band = "95% interval over seeds" if least >= series.SEEDS_FOR_INTERVAL else "range of all seeds"
    seeds = f"mean over seeds; the band is the {band}. " if least > 1 else "one seed. "
    title = f"{question.metric.path}{number_text.unit(question.metric)}"
    spec = bands(rows, chart.settings(verdict, rows), question.methods, title, 230)
    summary = f"{question.metric.path} by round, {seeds}{_best(verdict)}"
    return Chart("curves", "Accuracy during training", summary, spec, _curve_table(verdict), axes=AXES)


def bands(rows: Sequence[Row], panels: Sequence[str], methods: Sequence[str], title: str | None, height: int) -> Spec:
    """Lines with bands by round; marks if there are few rounds, bars if a band would have no width."""
    counts = Counter((row["panel"], row["method"]) for row in rows)
    rows = [{**row, "points": counts[row["panel"], row["method"]]} for row in rows]
    x = {"field": "round", "type": "quantitative", "title": "rounds", "axis": {"tickCount": 5, "labelExpr": _WHOLE}}
    has_lines = max(counts.values()) > _FEW
    legend = {"symbolOpacity": 1, **({"symbolType": "stroke", "symbolSize": 400} if has_lines else {})}
    colour = chart.by_method(methods, chart.COLOURS, legend=legend)
    ends = {"y": chart.numbers("low", title), "y2": {"field": "high"}}
    mean = {"x": x, "y": chart.numbers("mean", title), "color": colour}
    shape = chart.by_method(methods, chart.SHAPES, **({"legend": None} if has_lines else {}))
    opacity = {"condition": {"test": f"datum.points <= {_FEW}", "value": 1}, "value": 0}
    tips = chart.tooltip("method", "mean", "low", "high", "round", "mb", "s")
    layers: list[Spec] = [
        {"mark": {"type": "area", "opacity": 0.16}, "encoding": {"x": x, **ends, "color": colour}},
        {
            "transform": [{"filter": "datum.points == 1"}],
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6},
            "encoding": {"x": x, **ends, "color": colour},
        },
        {
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {**mean, "strokeDash": chart.by_method(methods, chart.DASHES)},
        },
        chart.points(45, {**mean, "shape": shape, "opacity": opacity, "tooltip": tips}),
    ]
    return chart.panels(rows, panels, layers, height=height, resolve=chart.OWN_SCALES)


def pareto(verdict: Verdict) -> Chart | None:
    """The result against its bytes; a step line joins the methods that no other beats in both."""
    question = verdict.question
    rows = [row for result in summary_table.ordered(verdict) if (row := _traffic(result, question.metric))]
    if len({row["method"] for row in rows}) < 2:  # a single method has no rival
        return None
    for row in rows:
        rivals = [other for other in rows if other["panel"] == row["panel"]]
        row["front"] = not any(_beats(other, row, question.metric.sign) for other in rivals)
    x = {
        "field": "mb",
        "type": "quantitative",
        "title": "megabytes of a whole run, both ways",
        "scale": {"type": "symlog", "constant": max(min((r["mb"] for r in rows if r["mb"]), default=1.0), 1e-3)},
        "axis": {"tickCount": 4, "labelOverlap": True, "format": "~s"},
    }
    title = f"{question.metric}{number_text.unit(question.metric)}"
    y, colour = chart.numbers("mean", title), chart.by_method(question.methods, chart.COLOURS)
    shape = chart.by_method(question.methods, chart.SHAPES)
    tips = chart.tooltip("method", "mean", "mb")
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 4], "style": "guide"},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": chart.numbers("low", title), "y2": {"field": "high"}, "color": colour},
        },
        chart.points(110, {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tips}, opacity=1),
    ]
    front = [f"{row['method']}{' in ' + row['panel'] if row['panel'] else ''}" for row in rows if row["front"]]
    way = "Up" if question.metric.sign > 0 else "Down"
    summary = f"{way} and left is better. No method is both better and cheaper than: {number_text.listing(front)}."
    cells = tuple(
        (r["panel"], r["method"], f"{r['mean']:g}", number_text.figure(r["mb"]), "yes" if r["front"] else "no")
        for r in rows
    )
    table = Table(("setting", "strategy", title, "megabytes", "unbeaten"), cells)
    spec = chart.panels(rows, chart.settings(verdict, rows), layers, height=230, resolve=chart.OWN_SCALES)
    return Chart("pareto", "Accuracy against bytes", summary, spec, table)


def _difference(result: MethodResult, factor: float) -> Row:
    versus = result.versus
    assert versus is not None  # the caller checks
    ends = {name: chart.short(factor * value) for name, value in _drawn(versus)}
    return {"panel": result.setting, "method": result.method, **ends, "pairs": versus.n}


def _drawn(interval: number_text.Range) -> Iterator[tuple[str, float]]:
    """The numbers of an interval; an unknown end is drawn at the mean."""
    yield "mean", interval.mean
    yield "low", interval.low if math.isfinite(interval.low) else interval.mean
    yield "high", interval.high if math.isfinite(interval.high) else interval.mean


def _traffic(result: MethodResult, metric: Metric) -> Row | None:
    sent = [megabytes for run in result.done if (megabytes := _BYTES.value(run)) is not None]
    if not sent or result.interval is None:
        return None
    ends = {name: chart.short(metric.scale * metric.clipped(value)) for name, value in _drawn(result.interval)}
    return {"panel": result.setting, "method": result.method, "mb": chart.short(statistics.fmean(sent)), **ends}


def _beats(one: Row, other: Row, sign: float) -> bool:
    at_least = sign * one["mean"] >= sign * other["mean"] and one["mb"] <= other["mb"]
    return bool(at_least and (one["mean"], one["mb"]) != (other["mean"], other["mb"]))


def _best(verdict: Verdict) -> str:
    """The best result of each setting in words: screen readers hear this instead of the picture."""
    metric = verdict.question.metric
    parts = [
        f"{best.method} {number_text.spread(best.interval, metric)}{' in ' + setting if setting else ''}"
        for setting in verdict.question.settings
        if (best := verdict.best(setting))
    ]
    head = "Best " if len(verdict.question.methods) > 1 else ""
    return f"{head}{metric}: {number_text.listing(parts)}." if parts else ""


def _curve_table(verdict: Verdict) -> Table:
    metric, rows = verdict.question.metric, []
    for result in summary_table.ordered(verdict):
        for point in series.points(result, metric, 6):
            values = (number_text.figure(value, metric) for value in (point.mean, point.low, point.high))
            cost = number_text.figure(point.megabytes), number_text.figure(point.seconds)
            rows.append((result.setting, result.method, str(point.round), *cost, *values, str(point.seeds)))
    return Table(("setting", "strategy", "round", "MB", "s", "mean", "low", "high", "seeds"), tuple(rows))


def _test_table(verdict: Verdict) -> Table:
    """All results of the tests."""
    metric, rows = verdict.question.metric, []
    for result in summary_table.ordered(verdict):
        pair = result.versus
        if pair is None:
            continue
        boot = " to ".join(number_text.figure(metric.scale * end) for end in (pair.boot_low, pair.boot_high))
        outcome = f"{pair.wins} / {pair.ties} / {pair.losses}"
        raw = f"{pair.p:.4f}" if math.isfinite(pair.p) else number_text.NOTHING
        gap = number_text.gap(pair, metric)
        head = (result.setting, result.method, str(pair.n), gap, f"{boot} ({pair.boot_method})", pair.test, raw)
        least, effect = f"{pair.smallest_p:.4f}", number_text.figure(pair.d_z)
        rows.append((*head, number_text.chance(result), least, effect, outcome))
    headings = ("setting", "strategy", "pairs", "difference [95% t]", "95% bootstrap", "test", "p", "p (Holm)")
    return Table((*headings, "smallest possible p", "effect d_z", "seeds won / tied / lost"), tuple(rows))


def _rank_table(verdict: Verdict) -> Table:
    assert verdict.ranks is not None
    rows = []
    for method, rank in verdict.ranks.mean.items():
        record = verdict.records.get(method)
        rows.append((method, f"{rank:.2f}", " / ".join(map(str, record)) if record else number_text.NOTHING))
    return Table(
        ("strategy", "average rank", f"settings won / tied / lost to {verdict.question.baseline}"), tuple(rows)
    )
