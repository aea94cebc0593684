"""The verdict as plain sentences with their uncertainty, and what the runs do not show."""

import math
from collections.abc import Iterator, Sequence

from simulations.analysis import stats
from simulations.analysis.metric import WINDOWS, Metric
from simulations.analysis.result import Entry, Verdict, in_setting
from simulations.analysis.run_record import RunRecord

_MANY = 4  # runs that a sentence names; more are counted


def sentences(verdict: Verdict) -> Iterator[str]:
    """The results: a sentence or two per setting, then one over all settings."""
    if not any(entry.interval for entry in verdict.entries.values()):
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
            f"'{question.metric}' picks rounds by the test accuracy that it reports: it is optimistic, and fit for "
            "comparison with published figures of the same rule only."
        )
    if without := [entry.method for entry in verdict.entries.values() if entry.done and not entry.values]:
        yield f"{_list(without)}: no `{question.metric.path}` in the ledger, so no place in the table."
    if verdict.failed:
        which = _list([member.name for member in verdict.failed])
        yield f"{len(verdict.failed)} of {_asked(verdict)} runs do not count: {which}."
    yield from _pairing(verdict)
    yield from _resources(verdict)


def value(number: float, metric: Metric) -> str:
    """A value for display: `95.87` (percent), `12.3`."""
    return "-" if not math.isfinite(number) else f"{number * metric.scale:.2f}"


def difference(pair: stats.Paired, metric: Metric) -> str:
    """`+3.01 [+2.11, +3.90]`: mean and 95 % interval."""
    mean, low, high = (each * metric.scale for each in (pair.mean, pair.low, pair.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def probability(p: float) -> str:
    """`0.023`, `< 0.001`, or `-` if there is none."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _of_setting(verdict: Verdict, setting: str) -> Iterator[str]:
    question, metric = verdict.question, verdict.question.metric
    order = [entry for entry in in_setting(verdict, setting) if entry.interval]
    head = f"{setting[0].upper()}{setting[1:]}: " if setting else ""
    if not order:
        yield f"{head}No run is done."
        return
    yield f"{head}{_best(order, metric)}{_unanswered(verdict, setting, order)}."
    pairs = [(entry, entry.versus) for entry in order if entry.versus]
    said = {
        f"Significantly above {question.baseline}": [e for e, pair in pairs if e.is_sure and pair.mean > 0],
        f"Significantly below {question.baseline}": [e for e, pair in pairs if e.is_sure and pair.mean < 0],
        f"Not shown to differ from {question.baseline}": [e for e, _ in pairs if e.p > stats.LEVEL],
        f"Difference from {question.baseline}, with 95 % interval and too few seeds for a test": [
            e for e, _ in pairs if math.isnan(e.p)
        ],
    }
    for what, found in said.items():
        if found:
            yield f"{head}{what}: {'; '.join(_against(entry, metric) for entry in found)}."


def _best(order: Sequence[Entry], metric: Metric) -> str:
    """The methods with the best and second-best mean; of a single method only its mean."""
    if len(order) < 2:
        return f"{order[0].method} has {metric} {_with_interval(order[0], metric)}"
    second = order[1].interval
    assert second is not None  # `order` holds only entries with a value
    if (best := order[0].interval) is not None and best.mean == second.mean:
        return f"{order[0].method} and {order[1].method} are level in {metric}, {_with_interval(order[0], metric)}"
    rest = f", before {order[1].method} with {value(second.mean, metric)}"
    return f"{order[0].method} has the best {metric}, {_with_interval(order[0], metric)}{rest}"


def _unanswered(verdict: Verdict, setting: str, order: Sequence[Entry]) -> str:
    """A note if only one of several methods has a value: it has won nothing."""
    asked = [entry for (at, _), entry in verdict.entries.items() if at == setting]
    return "; no other method has a value, so nothing is compared" if len(order) < 2 <= len(asked) else ""


def _with_interval(entry: Entry, metric: Metric) -> str:
    interval = entry.interval
    assert interval is not None  # the caller checks
    text = value(interval.mean, metric)
    if not interval.is_known:
        return f"{text} (one seed)"
    low, high = (value(metric.clipped(end), metric) for end in (interval.low, interval.high))
    return f"{text} (95 % interval {low} to {high})"


def _against(entry: Entry, metric: Metric) -> str:
    pair = entry.versus
    assert pair is not None  # the caller checks
    unit = f" {metric.unit}" if metric.unit else ""
    p = "" if math.isnan(entry.p) else f", p {probability(entry.p)}"
    return f"{entry.method} {difference(pair, metric)}{unit}{p}"


def _over_settings(verdict: Verdict) -> Iterator[str]:
    ranks = verdict.ranks
    if ranks is None or ranks.settings < 2 or not ranks.mean:
        return
    listed = "  ".join(f"{method} {rank:.1f}" for method, rank in ranks.mean.items())
    differ = (
        ""
        if math.isnan(ranks.critical_difference)
        else f"; ranks closer than {ranks.critical_difference:.1f} are not told apart"
    )
    yield f"Average rank over {ranks.settings} settings: {listed}{differ}."


def _tuning(verdict: Verdict) -> Iterator[str]:
    """Choices at the edge of their candidates, failed choices, and unequal tuning budgets."""
    tuned = verdict.question.tuned
    if tuned is None:
        return
    edges: dict[str, list[str]] = {}
    for choice in tuned.choices:
        for edge in choice.edges():
            edges.setdefault(str(edge), []).append(choice.place)
    for what, places in edges.items():
        yield f"{what}, so a value beyond it may be better: {_list(places)}."
    if lost := [choice.place for choice in tuned.choices if not choice.is_made]:
        yield f"Nothing could be chosen on validation data for {_list(lost)}: the first value was taken."
    tries = dict.fromkeys(verdict.question.methods, 1) | {c.method: len(c.trials) for c in tuned.choices}
    if len(set(tries.values())) > 1:
        each = _list([f"{method} {count}" if count > 1 else f"{method} none" for method, count in tries.items()])
        yield f"The methods were not tuned alike; values tried for each: {each}."


def _short(verdict: Verdict) -> Iterator[str]:
    """Runs so short that the mean of the last rounds includes the first, which lowers it."""
    metric = verdict.question.metric
    ends = [m.rows[-1]["round"] for entry in verdict.entries.values() for m in entry.done if m.rows]
    window = WINDOWS.get(metric.rule, 0)
    if ends and min(ends) < window:
        rounds = str(min(ends)) if len(set(ends)) == 1 else f"{min(ends)} to {max(ends)}"
        yield (
            f"Runs of {rounds} rounds are shorter than the {window} of '{metric}': it is the mean of all rounds, the "
            f"first ones too. For the last round alone: --metric '{metric.path} last'."
        )


def _few_seeds(verdict: Verdict) -> Iterator[str]:
    pairs = [entry.versus for entry in verdict.entries.values() if entry.versus]
    if not pairs:
        if len(verdict.question.methods) > 1:
            yield "Fewer than two seeds are shared with the baseline: differences have no interval, none is concluded."
        return
    family, least = len(pairs), min(pair.n for pair in pairs)
    if not stats.can_reach(least, family):
        needed = stats.seeds_needed(family)
        times = f", times {family} comparisons" if family > 1 else ""
        yield (
            f"{least} paired seeds cannot be significant: the smallest p that they can reach is "
            f"{stats.smallest_p(least):.3g}{times}. {needed} seeds would do."
        )


def _resolved(verdict: Verdict) -> Iterator[str]:
    limits, metric = verdict.resolution, verdict.question.metric
    if limits and all(map(math.isfinite, limits.values())):
        seeds = min(entry.versus.n for entry in verdict.entries.values() if entry.versus)
        each = _list([f"{method} {limit * metric.scale:.2g}" for method, limit in limits.items()])
        unit = f" {metric.unit}" if metric.unit else ""
        yield (
            f"With {seeds} seeds and their spread, smaller differences from {verdict.question.baseline} than these are "
            f"seldom found: {each}{unit}."
        )


def _pairing(verdict: Verdict) -> Iterator[str]:
    """Runs of one setting and seed that differ in what paired runs must share."""
    for what, key in (("split", "partition_sha256"), ("initial weights", "initial_sha256"), ("cohorts", "cohorts")):
        odd = [member.name for members in _by_seed(verdict) for member in _strangers(members, key)]
        if odd:
            left_out = " and is not paired" if key == "partition_sha256" else ""
            yield f"Another {what} than the baseline's{left_out}: {_list(odd)}."


def _by_seed(verdict: Verdict) -> Iterator[list[RunRecord]]:
    """The runs of a setting and seed, the baseline's first; skips seeds without a finished baseline."""
    for setting in verdict.question.settings:
        base = verdict.entries.get((setting, verdict.question.baseline))
        for first in base.done if base else ():
            others = [entry for (at, _), entry in verdict.entries.items() if at == setting and entry is not base]
            yield [first, *(member for entry in others for member in entry.done if member.seed == first.seed)]


def _strangers(members: Sequence[RunRecord], key: str) -> list[RunRecord]:
    first = members[0].pairing[key]
    return [m for m in members[1:] if first is not None and m.pairing[key] is not None and m.pairing[key] != first]


def _resources(verdict: Verdict) -> Iterator[str]:
    """Methods that used more than the clients' own data."""
    public = {e.method for e in verdict.entries.values() for member in e.done if member.info.get("proxy")}
    if public and len(public) < len(verdict.question.methods):
        yield f"With a public set of images beside the clients' data: {_list(sorted(public))}; the others had none."


def _asked(verdict: Verdict) -> int:
    return sum(len(entry.members) for entry in verdict.entries.values())


def _list(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_MANY])
    return shown if len(names) <= _MANY else f"{shown}; and {len(names) - _MANY} more"
