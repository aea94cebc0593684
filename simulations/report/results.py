"""Charts of what was reached: differences from the baseline, ranks, curves, and accuracy against bytes."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from simulations.analysis.metric import Metric
from simulations.analysis.result import MethodResult, Verdict
from simulations.report import chart, number_text, series, summary_table
from simulations.report.chart import Chart, Row, Spec
from simulations.report.summary_table import Table

AXES = {"rounds": ("round", "rounds"), "megabytes": ("mb", "megabytes, both ways"), "seconds": ("s", "seconds")}
_BYTES = Metric("bytes.all", "sum")
_WHOLE = "datum.value % 1 ? '' : format(datum.value, ',d')"  # there is no round 1.5
_FEW = 12  # rounds of a curve that are marked each


def charts(verdict: Verdict) -> list[Chart]:
    """The charts that have data."""
    found = (differences(verdict), ranks(verdict), curves(verdict), pareto(verdict))
    return [each for each in found if each is not None]


def differences(verdict: Verdict) -> Chart | None:
    """How much better than the baseline each method is, paired by seed, with the interval."""
    question = verdict.question
    rows = [
        _difference(result, question.metric.scale)
        for result in summary_table.ordered(verdict)
        if result.versus is not None
    ]
    if not rows:
        return None
    methods = [method for method in question.methods if method != question.baseline]
    unit = f", {question.metric.unit}" if question.metric.unit else ""
    title = f"better than {question.baseline} by{unit}"
    y, tone = chart.method_axis(methods), chart.colour(question.methods, legend=None)
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeDash": [4, 4], "style": "guide"}, "encoding": {"x": {"datum": 0}}},
        {
            "mark": {"type": "rule", "strokeWidth": 3},
            "encoding": {"x": chart.numbers("low", title), "x2": {"field": "high"}, "y": y, "color": tone},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                "x": chart.numbers("mean", title),
                "y": y,
                "color": tone,
                "shape": {**chart.shape(question.methods), "legend": None},
                "tooltip": _tips("method", "mean", "low", "high", "pairs"),
            },
        },
    ]
    sure = [result for result in summary_table.ordered(verdict) if result.is_significant]
    summary = (
        f"Paired difference from {question.baseline} with its 95% interval, by setting; right of the dashed line is "
        f"better. {len(sure)} of {len(rows)} differences are significant after Holm's correction."
    )
    spec = chart.panels(rows, _panels(verdict, rows), layers, height={"step": 30}, resolve=chart.OWN_SCALES)
    return Chart(
        "differences",
        "Difference from the baseline",
        summary,
        spec,
        _test_table(verdict),
        margin=chart.label_room(verdict.question.methods),
    )


def ranks(verdict: Verdict) -> Chart | None:
    """Average ranks; bars of half a critical difference to each side: methods whose bars overlap are not told apart."""
    found = verdict.ranks
    if found is None or len(found.mean) < 2:
        return None
    half = found.critical_difference / 2 if math.isfinite(found.critical_difference) else 0.0
    worst = len(found.mean)  # no rank is beyond 1 and this, and two bars that overlap do so in between
    rows: list[Row] = [
        {"panel": "", "method": method, "rank": rank, "low": max(rank - half, 1), "high": min(rank + half, worst)}
        for method, rank in found.mean.items()
    ]
    y, tone = chart.method_axis(list(found.mean)), chart.colour(verdict.question.methods, legend=None)
    title, axis = "average rank, 1 is best", {"tickMinStep": 0.5, "tickCount": 5, "labelOverlap": True}
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.6},
            "encoding": {"x": chart.numbers("low", title, axis=axis), "x2": {"field": "high"}, "y": y, "color": tone},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                "x": chart.numbers("rank", title, axis=axis),
                "y": y,
                "color": tone,
                "shape": {**chart.shape(verdict.question.methods), "legend": None},
                "tooltip": _tips("method", "rank"),
            },
        },
    ]
    best = next(iter(found.mean))
    summary = f"Average rank over {number_text.count(found.settings, 'setting')}; {best} ranks best. " + (
        f"Two methods differ if their ranks are {found.critical_difference:.2f} apart (critical difference): "
        "if their bars do not overlap."
        if half
        else "There is no critical difference: too few settings or methods."
    )
    spec = chart.panels(rows, [""], layers, height={"step": 30})
    return Chart(
        "ranks", "Average ranks", summary, spec, _rank_table(verdict), margin=chart.label_room(verdict.question.methods)
    )


def curves(verdict: Verdict) -> Chart | None:
    """The primary metric by rounds, megabytes or seconds."""
    question = verdict.question
    rows = list(series.rows(summary_table.ordered(verdict), question.metric, lambda result: result.setting))
    if not rows:
        return None
    least = min(len(result.done) for result in verdict.results.values() if result.done)
    band = f"mean over seeds; the band is the {_band(least)}. " if least > 1 else "one seed. "
    title = f"{question.metric.path}{number_text.unit(question.metric)}"
    spec = bands(rows, _panels(verdict, rows), question.methods, title, 230)
    summary = f"{question.metric.path} by round, {band}" + _ends(verdict)
    return Chart("curves", "Accuracy as training goes on", summary, spec, _curve_table(verdict), axes=AXES)


def _band(seeds: int) -> str:
    return "95% interval over seeds" if seeds >= series.SEEDS_FOR_INTERVAL else "range of all seeds"


def bands(rows: Sequence[Row], panels: Sequence[str], methods: Sequence[str], title: str | None, height: int) -> Spec:
    """Lines with bands by round; marks where there are few rounds, bars where a band would have no width."""
    counts = Counter((row["panel"], row["method"]) for row in rows)
    rows = [{**row, "points": counts[row["panel"], row["method"]]} for row in rows]
    x = {"field": "round", "type": "quantitative", "title": "rounds", "axis": {"tickCount": 5, "labelExpr": _WHOLE}}
    has_lines = max(counts.values()) > _FEW
    legend = {"symbolOpacity": 1, **({"symbolType": "stroke", "symbolSize": 400} if has_lines else {})}
    tone = chart.colour(methods, legend=legend)
    ends = {"y": chart.numbers("low", title), "y2": {"field": "high"}}
    mean = {"x": x, "y": chart.numbers("mean", title), "color": tone}
    layers: list[Spec] = [
        {"mark": {"type": "area", "opacity": 0.16}, "encoding": {"x": x, **ends, "color": tone}},
        {
            "transform": [{"filter": "datum.points == 1"}],
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6},
            "encoding": {"x": x, **ends, "color": tone},
        },
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {**mean, "strokeDash": chart.dash(methods)}},
        {
            "mark": {"type": "point", "filled": True, "size": 45},
            "encoding": {
                **mean,
                "shape": {**chart.shape(methods), **({"legend": None} if has_lines else {})},
                "opacity": {"condition": {"test": f"datum.points <= {_FEW}", "value": 1}, "value": 0},
                "tooltip": _tips("method", "mean", "low", "high", "round", "mb", "s"),
            },
        },
    ]
    return chart.panels(rows, panels, layers, height=height, resolve=chart.OWN_SCALES)


def pareto(verdict: Verdict) -> Chart | None:
    """What was reached for how many bytes; a step joins those that none beats in both."""
    question = verdict.question
    rows = [row for result in summary_table.ordered(verdict) if (row := _price(result, question.metric))]
    if len({row["method"] for row in rows}) < 2:  # one alone is beaten by none
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
    y = chart.numbers("mean", f"{question.metric}{number_text.unit(question.metric)}")
    tone = chart.colour(question.methods)
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 4], "style": "guide"},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": chart.numbers("low", y["title"]), "y2": {"field": "high"}, "color": tone},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": tone,
                "shape": chart.shape(question.methods),
                "tooltip": _tips("method", "mean", "mb"),
            },
        },
    ]
    front = [f"{row['method']}{' in ' + row['panel'] if row['panel'] else ''}" for row in rows if row["front"]]
    way = "Up" if question.metric.sign > 0 else "Down"
    summary = (
        f"{way} and left is better. No other method is both better and cheaper than: {number_text.listing(front)}."
    )
    cells = tuple(
        (r["panel"], r["method"], f"{r['mean']:g}", number_text.figure(r["mb"]), "yes" if r["front"] else "no")
        for r in rows
    )
    table = Table(("setting", "strategy", str(y["title"]), "megabytes", "unbeaten"), cells)
    spec = chart.panels(rows, _panels(verdict, rows), layers, height=230, resolve=chart.OWN_SCALES)
    return Chart("pareto", "Accuracy against bytes", summary, spec, table)


def _panels(verdict: Verdict, rows: Sequence[Row]) -> list[str]:
    there = {row["panel"] for row in rows}
    return [setting for setting in verdict.question.settings if setting in there]


def _tips(*names: str) -> list[Spec]:
    return [{"field": name} for name in names]


def _difference(result: MethodResult, factor: float) -> Row:
    versus = result.versus
    assert versus is not None
    found = {name: chart.short(factor * value) for name, value in _ends_of(versus.mean, versus.low, versus.high)}
    return {"panel": result.setting, "method": result.method, **found, "pairs": versus.n}


def _ends_of(mean: float, low: float, high: float) -> Iterator[tuple[str, float]]:
    """An interval that is not known is drawn as its mean alone."""
    yield "mean", mean
    yield "low", low if math.isfinite(low) else mean
    yield "high", high if math.isfinite(high) else mean


def _price(result: MethodResult, metric: Metric) -> Row | None:
    sent = [found for run in result.done if (found := _BYTES.value(run)) is not None]
    interval = result.interval
    if not sent or interval is None:
        return None
    known = _ends_of(interval.mean, interval.low, interval.high)
    ends = {name: chart.short(metric.scale * metric.clipped(value)) for name, value in known}
    return {"panel": result.setting, "method": result.method, "mb": chart.short(statistics.fmean(sent)), **ends}


def _beats(one: Row, other: Row, sign: float) -> bool:
    at_least = sign * one["mean"] >= sign * other["mean"] and one["mb"] <= other["mb"]
    return bool(at_least and (one["mean"], one["mb"]) != (other["mean"], other["mb"]))


def _ends(verdict: Verdict) -> str:
    """The best of each setting in words; screen readers hear this instead of the picture."""
    metric, parts = verdict.question.metric, []
    for setting in verdict.question.settings:
        if best := verdict.best(setting):
            parts.append(
                f"{best.method} {number_text.spread(best.interval, metric)}{' in ' + setting if setting else ''}"
            )
    head = "Best " if len(verdict.question.methods) > 1 else ""
    return f"{head}{metric}: {number_text.listing(parts)}." if parts else ""


def _curve_table(verdict: Verdict) -> Table:
    metric, rows = verdict.question.metric, []
    for result in summary_table.ordered(verdict):
        for at in series.points(result, metric, 6):
            values = (number_text.figure(each, metric) for each in (at.mean, at.low, at.high))
            cost = number_text.figure(at.megabytes), number_text.figure(at.seconds)
            rows.append((result.setting, result.method, str(at.round), *cost, *values, str(at.seeds)))
    return Table(("setting", "strategy", "round", "MB", "s", "mean", "low", "high", "seeds"), tuple(rows))


def _test_table(verdict: Verdict) -> Table:
    """All results of the tests."""
    metric, rows = verdict.question.metric, []
    for result in summary_table.ordered(verdict):
        it = result.versus
        if it is None:
            continue
        factor = metric.scale
        boot = " to ".join(number_text.figure(factor * each) for each in (it.boot_low, it.boot_high))
        effect = number_text.figure(it.d_z)
        outcome = f"{it.wins} / {it.ties} / {it.losses}"
        raw = f"{it.p:.4f}" if math.isfinite(it.p) else number_text.NOTHING
        head = (result.setting, result.method, str(it.n), number_text.gap(it, metric), f"{boot} ({it.boot_method})")
        rows.append((*head, it.test, raw, number_text.chance(result), f"{it.smallest_p:.4f}", effect, outcome))
    headings = ("setting", "strategy", "pairs", "difference [95% t]", "95% bootstrap", "test", "p", "p (Holm)")
    return Table((*headings, "least p possible", "effect d_z", "seeds won / tied / lost"), tuple(rows))


def _rank_table(verdict: Verdict) -> Table:
    assert verdict.ranks is not None
    rows = []
    for method, rank in verdict.ranks.mean.items():
        record = verdict.records.get(method)
        rows.append((method, f"{rank:.2f}", " / ".join(map(str, record)) if record else number_text.NOTHING))
    return Table(
        ("strategy", "average rank", f"settings won / tied / lost to {verdict.question.baseline}"), tuple(rows)
    )
