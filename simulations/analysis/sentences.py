"""The verdict as plain sentences with their uncertainty, and the limits of what the runs show."""

import math
from collections.abc import Iterator, Sequence

from simulations.analysis import stats
from simulations.analysis.metric import WINDOWS, Metric
from simulations.analysis.result import MethodResult, Verdict, in_setting
from simulations.analysis.run_record import RunRecord

_MANY = 4  # names in a sentence; further ones are counted


def sentences(verdict: Verdict) -> Iterator[str]:
    """The results: a sentence or two per setting, then one over all settings."""
    if not any(result.interval for result in verdict.results.values()):
        yield "No run is done: there is nothing to conclude."
        return
    for setting in verdict.question.settings:
        yield from _of_setting(verdict, setting)
    yield from _over_settings(verdict)


def cautions(verdict: Verdict) -> Iterator[str]:
    """What the runs do not show, and why."""
    yield from _few_seeds(verdict)
    yield from _short(verdict)
    yield from _resolved(verdict)
    yield from _tuning(verdict)
    question = verdict.question
    if question.metric.is_optimistic:
        yield (
            f"'{question.metric}' picks rounds by the test accuracy that it reports, so it is optimistic: compare it "
            "only with published figures of the same rule."
        )
    if without := [result.method for result in verdict.results.values() if result.done and not result.values]:
        yield f"{_list(without)}: the ledger has no `{question.metric.path}`, so the table has no value."
    if verdict.failed:
        num_runs = sum(len(result.runs) for result in verdict.results.values())
        yield f"{len(verdict.failed)} of {num_runs} runs do not count: {_list([run.name for run in verdict.failed])}."
    yield from _pairing(verdict)
    yield from _resources(verdict)


def value(number: float, metric: Metric) -> str:
    """A value for display: `95.87` (percent), `12.3`."""
    return "-" if not math.isfinite(number) else f"{number * metric.scale:.2f}"


def difference(pair: stats.Paired, metric: Metric) -> str:
    """`+3.01 [+2.11, +3.90]`: mean and 95 % interval."""
    mean, low, high = (number * metric.scale for number in (pair.mean, pair.low, pair.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def probability(p: float) -> str:
    """`0.023`, `< 0.001`, or `-` if there is none."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _of_setting(verdict: Verdict, setting: str) -> Iterator[str]:
    question, metric = verdict.question, verdict.question.metric
    order = [result for result in in_setting(verdict, setting) if result.interval]
    head = f"{setting[0].upper()}{setting[1:]}: " if setting else ""
    if not order:
        yield f"{head}No run is done."
        return
    yield f"{head}{_best(order, metric)}{_unanswered(verdict, setting, order)}."
    pairs = [(result, result.versus) for result in order if result.versus]
    groups = {
        f"Significantly above {question.baseline}": [r for r, pair in pairs if r.is_significant and pair.mean > 0],
        f"Significantly below {question.baseline}": [r for r, pair in pairs if r.is_significant and pair.mean < 0],
        f"No significant difference from {question.baseline}": [r for r, _ in pairs if r.p > stats.LEVEL],
        f"Difference from {question.baseline}, with 95 % interval and too few seeds for a test": [
            r for r, _ in pairs if math.isnan(r.p)
        ],
    }
    for finding, results in groups.items():
        if results:
            yield f"{head}{finding}: {'; '.join(_against(result, metric) for result in results)}."


def _best(order: Sequence[MethodResult], metric: Metric) -> str:
    """The methods with the best and second-best mean; for a single method only its mean."""
    if len(order) < 2:
        return f"{order[0].method} has {metric} {_with_interval(order[0], metric)}"
    second = order[1].interval
    assert second is not None  # `order` holds only results with a value
    if (best := order[0].interval) is not None and best.mean == second.mean:
        return f"{order[0].method} and {order[1].method} have the same {metric}, {_with_interval(order[0], metric)}"
    rest = f"; {order[1].method} is second with {value(second.mean, metric)}"
    return f"{order[0].method} has the best {metric}, {_with_interval(order[0], metric)}{rest}"


def _unanswered(verdict: Verdict, setting: str, order: Sequence[MethodResult]) -> str:
    """A note if only one of several methods has a value: then nothing is compared."""
    requested = [result for result in verdict.results.values() if result.setting == setting]
    return "; no other method has a value, so nothing is compared" if len(order) < 2 <= len(requested) else ""


def _with_interval(result: MethodResult, metric: Metric) -> str:
    interval = result.interval
    assert interval is not None  # the caller checks
    text = value(interval.mean, metric)
    if not interval.is_known:
        return f"{text} (one seed)"
    low, high = (value(metric.clipped(end), metric) for end in (interval.low, interval.high))
    return f"{text} (95 % interval {low} to {high})"


def _against(result: MethodResult, metric: Metric) -> str:
    pair = result.versus
    assert pair is not None  # the caller checks
    unit = f" {metric.unit}" if metric.unit else ""
    p = "" if math.isnan(result.p) else f", p {probability(result.p)}"
    return f"{result.method} {difference(pair, metric)}{unit}{p}"


def _over_settings(verdict: Verdict) -> Iterator[str]:
    ranks = verdict.ranks
    if ranks is None or ranks.settings < 2 or not ranks.mean:
        return
    listed = "  ".join(f"{method} {rank:.1f}" for method, rank in ranks.mean.items())
    limit = ranks.critical_difference
    note = "" if math.isnan(limit) else f"; ranks closer than {limit:.1f} are not significantly different"
    yield f"Average rank over {ranks.settings} settings: {listed}{note}."


def _tuning(verdict: Verdict) -> Iterator[str]:
    """Choices at the edge of their candidates, failed choices, and unequal tuning budgets."""
    tuned = verdict.question.tuned
    if tuned is None:
        return
    edges: dict[str, list[str]] = {}
    for choice in tuned.choices:
        for edge in choice.edges():
            edges.setdefault(str(edge), []).append(choice.place)
    for edge_text, places in edges.items():
        yield f"{edge_text}, so a value beyond it may be better: {_list(places)}."
    if failed := [choice.place for choice in tuned.choices if not choice.is_made]:
        yield f"No value could be chosen on validation data for {_list(failed)}: the first value was taken."
    tries = dict.fromkeys(verdict.question.methods, 1) | {c.method: len(c.trials) for c in tuned.choices}
    if len(set(tries.values())) > 1:
        counts = _list([f"{method} {count}" if count > 1 else f"{method} none" for method, count in tries.items()])
        yield f"The methods had unequal tuning budgets; values tried per method: {counts}."


def _short(verdict: Verdict) -> Iterator[str]:
    """Warn if a run is so short that the mean of the last rounds includes the first ones, which lower it."""
    metric = verdict.question.metric
    ends = [m.rows[-1]["round"] for result in verdict.results.values() for m in result.done if m.rows]
    window = WINDOWS.get(metric.rule, 0)
    if ends and min(ends) < window:
        rounds = str(min(ends)) if len(set(ends)) == 1 else f"{min(ends)} to {max(ends)}"
        yield (
            f"Runs of {rounds} rounds are shorter than the {window} of '{metric}', which is then the mean of all "
            f"rounds, including the first. For the last round alone: --metric '{metric.path} last'."
        )


def _few_seeds(verdict: Verdict) -> Iterator[str]:
    pairs = [result.versus for result in verdict.results.values() if result.versus]
    if not pairs:
        if len(verdict.question.methods) > 1:
            yield "No method shares two seeds with the baseline, so differences have no interval and no test."
        return
    family, least = len(pairs), min(pair.n for pair in pairs)
    if not stats.can_reach(least, family):
        needed = stats.seeds_needed(family)
        times = f", times {family} comparisons" if family > 1 else ""
        yield (
            f"{least} paired seeds cannot show a significant difference: the smallest p that they can reach is "
            f"{stats.smallest_p(least):.3g}{times}. {needed} seeds suffice."
        )


def _resolved(verdict: Verdict) -> Iterator[str]:
    limits, metric = verdict.resolution, verdict.question.metric
    if limits and all(map(math.isfinite, limits.values())):
        seeds = min(result.versus.n for result in verdict.results.values() if result.versus)
        smallest = _list([f"{method} {limit * metric.scale:.2g}" for method, limit in limits.items()])
        unit = f" {metric.unit}" if metric.unit else ""
        yield (
            f"With {seeds} seeds and their spread, a test seldom finds differences from {verdict.question.baseline} "
            f"smaller than: {smallest}{unit}."
        )


def _pairing(verdict: Verdict) -> Iterator[str]:
    """Warn of runs with one setting and seed that differ in what paired runs must share."""
    for noun, key in (("partition", "partition_sha256"), ("initial weights", "initial_sha256"), ("cohorts", "cohorts")):
        if odd := [run.name for runs in _by_seed(verdict) for run in _differing(runs, key)]:
            not_paired = ", so not paired" if key == "partition_sha256" else ""
            yield f"Other {noun} than the baseline's{not_paired}: {_list(odd)}."


def _by_seed(verdict: Verdict) -> Iterator[list[RunRecord]]:
    """The runs of a setting and seed, the baseline's first; skips seeds without a finished baseline."""
    for setting in verdict.question.settings:
        base = verdict.results.get((setting, verdict.question.baseline))
        for first in base.done if base else ():
            others = [result for result in verdict.results.values() if result.setting == setting and result is not base]
            yield [first, *(run for result in others for run in result.done if run.seed == first.seed)]


def _differing(runs: Sequence[RunRecord], key: str) -> list[RunRecord]:
    first = runs[0].pairing[key]
    return [run for run in runs[1:] if None not in (first, run.pairing[key]) and run.pairing[key] != first]


def _resources(verdict: Verdict) -> Iterator[str]:
    """Name the methods that used more than the clients' own data."""
    public = {run.method for result in verdict.results.values() for run in result.done if run.info.get("proxy")}
    if public and len(public) < len(verdict.question.methods):
        yield f"{_list(sorted(public))}: with a public set of samples; the other methods had none."


def _list(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_MANY])
    return shown if len(names) <= _MANY else f"{shown}; and {len(names) - _MANY} more"
