"""From the runs of a comparison to its verdict, by paired statistics."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedkd.errors import ConfigError
from simulations.analysis import sentences, stats
from simulations.analysis.metric import Metric, megabytes
from simulations.analysis.result import LOCAL, WINDOW, Entry, Key, Price, Question, Verdict, own_accuracy
from simulations.analysis.run_record import RunRecord

TRAINED = "trained.clients.mean"


def judge(question: Question, members: Sequence[RunRecord]) -> Verdict:
    """The verdict on the runs so far. Raises ConfigError if runs are done and none has the metric."""
    question = _with_trained(question, members)
    entries = _with_p(_entries(question, members))
    if any(entry.done for entry in entries.values()) and not any(entry.values for entry in entries.values()):
        raise ConfigError(
            f"no run has the metric '{question.metric}'",
            where="metric",
            mend="e.g. 'clients.mean last10' or 'global last10'; fedkd show RUN tells what a run has",
        )
    verdict = Verdict(
        question=question,
        entries=entries,
        ranks=_ranks(question, entries),
        records=_records(question, entries),
        resolution=_resolution(entries),
        sentences=(),
        cautions=(),
        failed=tuple(member for member in members if not member.is_done),
    )
    return replace(verdict, sentences=tuple(sentences.sentences(verdict)), cautions=tuple(sentences.cautions(verdict)))


def _with_trained(question: Question, members: Sequence[RunRecord]) -> Question:
    """Add a column for the mean over clients that have trained, if some have not."""
    if question.metric.path != "clients.mean" or not any(member.untrained for member in members):
        return question
    return replace(question, columns={**question.columns, "trained": replace(question.metric, path=TRAINED)})


def _entries(question: Question, members: Sequence[RunRecord]) -> dict[Key, Entry]:
    by_key: dict[Key, list[RunRecord]] = {(s, m): [] for s in question.settings for m in question.methods}
    for member in sorted(members, key=lambda each: each.seed):
        by_key.setdefault((member.setting, member.method), []).append(member)
    locals_ = {(m.setting, m.seed): m for m in members if m.is_done and m.info.get("strategy") == LOCAL}
    return {
        key: _entry(question, key, its, by_key.get((key[0], question.baseline), []), locals_)
        for key, its in by_key.items()
        if its
    }


def _entry(
    question: Question,
    key: Key,
    members: Sequence[RunRecord],
    baseline: Sequence[RunRecord],
    locals_: Mapping[tuple[str, int], RunRecord],
) -> Entry:
    metric, done = question.metric, [member for member in members if member.is_done]
    values = _values(metric, done)
    harmed = [_harmed(member, locals_.get((member.setting, member.seed))) for member in done]
    return Entry(
        setting=key[0],
        method=key[1],
        members=tuple(members),
        values=values,
        interval=stats.mean_interval(list(values.values())) if values else None,
        versus=None if key[1] == question.baseline else _versus(metric, done, baseline),
        p=math.nan,
        columns={title: _mean_of(list(_values(each, done).values())) for title, each in question.columns.items()},
        price=None if question.target is None else _price(question, done),
        harmed=_mean_of([share for share in harmed if share is not None]),
    )


def _values(metric: Metric, members: Sequence[RunRecord]) -> dict[int, float]:
    found = {member.seed: metric.of(member) for member in members}
    return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


def differences(metric: Metric, ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> dict[int, float]:
    """Seed -> how much better ours is, for the seeds that both have with equal partitions."""
    splits = {member.seed: member.pairing["partition_sha256"] for member in theirs if member.is_done}
    same = [m for m in ours if m.is_done and splits.get(m.seed) == m.pairing["partition_sha256"] is not None]
    mine, other = _values(metric, same), _values(metric, [m for m in theirs if m.is_done])
    return {seed: metric.sign * (value - other[seed]) for seed, value in mine.items() if seed in other}


def _versus(metric: Metric, ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> stats.Paired | None:
    found = list(differences(metric, ours, theirs).values())
    return stats.paired(found) if len(found) > 1 else None


def _with_p(entries: Mapping[Key, Entry]) -> dict[Key, Entry]:
    """Holm over the family: every comparison with the baseline, in all settings. nan for those with too few seeds."""
    pairs = {key: entry.versus for key, entry in entries.items() if entry.versus}
    adjusted = dict(zip(pairs, stats.holm([pair.p for pair in pairs.values()]), strict=True))
    able = [key for key, pair in pairs.items() if stats.can_reach(pair.n, len(pairs))]
    return {key: replace(entry, p=adjusted[key] if key in able else math.nan) for key, entry in entries.items()}


def _ranks(question: Question, entries: Mapping[Key, Entry]) -> stats.Ranks | None:
    sign = question.metric.sign
    table: dict[str, dict[str, float]] = {}
    for (setting, method), entry in entries.items():
        if entry.interval:
            table.setdefault(setting, {})[method] = sign * entry.interval.mean
    return stats.average_ranks(table) if len(table) > 1 and len(question.methods) > 1 else None


def _records(question: Question, entries: Mapping[Key, Entry]) -> dict[str, stats.WinTieLoss]:
    others = [method for method in question.methods if method != question.baseline]
    return {
        method: stats.win_tie_loss(
            replace(entry.versus, p=entry.p)
            for (_, its), entry in entries.items()
            if its == method and entry.versus is not None
        )
        for method in others
    }


def _resolution(entries: Mapping[Key, Entry]) -> dict[str, float]:
    """Resolution by method, in the setting with the largest spread, at the level of Holm's first step; inf: none."""
    pairs = {key: entry.versus for key, entry in entries.items() if entry.versus}
    found: dict[str, float] = {}
    for (_, method), pair in pairs.items():
        limit = stats.resolution(pair.sd, pair.n, level=stats.LEVEL / len(pairs))
        found[method] = max(limit, found.get(method, 0.0))
    return found


def _price(question: Question, done: Sequence[RunRecord]) -> Price:
    target = question.target
    assert target is not None  # the caller checks
    found = [price for member in done if (price := price_of(member, question.metric, target))]
    medians = [_median_or_never([each[part] for each in found], len(done)) for part in range(3)]
    return Price(medians[0], medians[1], medians[2], len(found), len(done))


def price_of(member: RunRecord, metric: Metric, target: float) -> tuple[float, float, float] | None:
    """Rounds, megabytes (both ways), seconds until the mean of WINDOW evaluations reached the target; None: never."""
    curve = metric.curve(member)
    for end in range(WINDOW, len(curve) + 1):
        if statistics.fmean(value for _, value in curve[end - WINDOW : end]) >= target:
            number = curve[end - 1][0]
            traffic = sum(megabytes(row, "all") for row in member.rows if row["round"] <= number)
            seconds = sum(row["total"] for row in member.timings if row["round"] <= number)
            return float(number), traffic, seconds
    return None


def _median_or_never(values: Sequence[float], of: int) -> float | None:
    never = of - len(values)
    found = statistics.median([*values, *([math.inf] * never)]) if of else math.inf
    return found if math.isfinite(found) else None


def _harmed(member: RunRecord, alone: RunRecord | None) -> float | None:
    """Share of clients with lower accuracy than under local training; None without such a run."""
    if alone is None or alone is member or alone.pairing["partition_sha256"] != member.pairing["partition_sha256"]:
        return None
    ours, theirs = own_accuracy(member), own_accuracy(alone)
    both = [client for client in ours if client in theirs]
    return statistics.fmean(ours[client] < theirs[client] for client in both) if both else None


def _mean_of(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
