"""From the runs of a comparison to its verdict, by paired statistics."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedkd.errors import ConfigError
from simulations.analysis import sentences, stats
from simulations.analysis.metric import Metric, megabytes
from simulations.analysis.result import LOCAL, WINDOW, Key, MethodResult, Price, Question, Verdict, own_accuracy
from simulations.analysis.run_record import RunRecord

TRAINED = "trained.clients.mean"


def analyse(question: Question, runs: Sequence[RunRecord]) -> Verdict:
    """The verdict on the runs so far. Raises ConfigError if runs are done and none has the metric."""
    question = _with_trained(question, runs)
    results = _with_p(_results(question, runs))
    if any(result.done for result in results.values()) and not any(result.values for result in results.values()):
        raise ConfigError(
            f"no run has the metric '{question.metric}'",
            where="metric",
            mend="e.g. 'clients.mean last10' or 'global last10'; fedkd show RUN tells what a run has",
        )
    verdict = Verdict(
        question=question,
        results=results,
        ranks=_ranks(question, results),
        records=_records(question, results),
        resolution=_resolution(results),
        sentences=(),
        cautions=(),
        failed=tuple(run for run in runs if not run.is_done),
    )
    return replace(verdict, sentences=tuple(sentences.sentences(verdict)), cautions=tuple(sentences.cautions(verdict)))


def _with_trained(question: Question, runs: Sequence[RunRecord]) -> Question:
    """Add a column for the mean over clients that have trained, if some have not."""
    if question.metric.path != "clients.mean" or not any(run.untrained for run in runs):
        return question
    return replace(question, columns={**question.columns, "trained": replace(question.metric, path=TRAINED)})


def _results(question: Question, runs: Sequence[RunRecord]) -> dict[Key, MethodResult]:
    by_key: dict[Key, list[RunRecord]] = {(s, m): [] for s in question.settings for m in question.methods}
    for run in sorted(runs, key=lambda run: run.seed):
        by_key.setdefault((run.setting, run.method), []).append(run)
    local_only = {(run.setting, run.seed): run for run in runs if run.is_done and run.info.get("strategy") == LOCAL}
    return {
        key: _result(question, key, own_runs, by_key.get((key[0], question.baseline), []), local_only)
        for key, own_runs in by_key.items()
        if own_runs
    }


def _result(
    question: Question,
    key: Key,
    runs: Sequence[RunRecord],
    baseline: Sequence[RunRecord],
    local_only: Mapping[tuple[str, int], RunRecord],
) -> MethodResult:
    metric, done = question.metric, [run for run in runs if run.is_done]
    values = _values(metric, done)
    harmed = [_harmed(run, local_only.get((run.setting, run.seed))) for run in done]
    return MethodResult(
        setting=key[0],
        method=key[1],
        runs=tuple(runs),
        values=values,
        interval=stats.mean_interval(list(values.values())) if values else None,
        versus=None if key[1] == question.baseline else _versus(metric, done, baseline),
        p=math.nan,
        columns={title: _mean(list(_values(column, done).values())) for title, column in question.columns.items()},
        price=None if question.target is None else _price(question.metric, question.target, done),
        harmed=_mean([share for share in harmed if share is not None]),
    )


def _values(metric: Metric, runs: Sequence[RunRecord]) -> dict[int, float]:
    values = {run.seed: metric.value(run) for run in runs}
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}


def _versus(metric: Metric, ours: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> stats.Paired | None:
    """How much better ours are, over the seeds that both have with equal partitions; None for fewer than two."""
    theirs = [run for run in baseline if run.is_done]
    splits = {run.seed: run.pairing["partition_sha256"] for run in theirs}
    paired = [run for run in ours if splits.get(run.seed) == run.pairing["partition_sha256"] is not None]
    values, other = _values(metric, paired), _values(metric, theirs)
    gaps = [metric.sign * (value - other[seed]) for seed, value in values.items() if seed in other]
    return stats.paired(gaps) if len(gaps) > 1 else None


def _with_p(results: Mapping[Key, MethodResult]) -> dict[Key, MethodResult]:
    """Holm over the family: every comparison with the baseline, in all settings. nan for those with too few seeds."""
    pairs = {key: result.versus for key, result in results.items() if result.versus}
    adjusted = dict(zip(pairs, stats.holm([pair.p for pair in pairs.values()]), strict=True))
    able = [key for key, pair in pairs.items() if stats.can_reach(pair.n, len(pairs))]
    return {key: replace(result, p=adjusted[key] if key in able else math.nan) for key, result in results.items()}


def _ranks(question: Question, results: Mapping[Key, MethodResult]) -> stats.Ranks | None:
    table: dict[str, dict[str, float]] = {}
    for (setting, method), result in results.items():
        if result.interval:
            table.setdefault(setting, {})[method] = question.metric.sign * result.interval.mean
    return stats.average_ranks(table) if len(table) > 1 and len(question.methods) > 1 else None


def _records(question: Question, results: Mapping[Key, MethodResult]) -> dict[str, stats.WinTieLoss]:
    return {
        method: stats.win_tie_loss(
            replace(result.versus, p=result.p)
            for result in results.values()
            if result.method == method and result.versus is not None
        )
        for method in question.methods
        if method != question.baseline
    }


def _resolution(results: Mapping[Key, MethodResult]) -> dict[str, float]:
    """Resolution by method, in the setting with the largest spread, at the level of Holm's first step; inf: none."""
    pairs = {key: result.versus for key, result in results.items() if result.versus}
    limits: dict[str, float] = {}
    for (_, method), pair in pairs.items():
        limit = stats.resolution(pair.sd, pair.n, level=stats.LEVEL / len(pairs))
        limits[method] = max(limit, limits.get(method, 0.0))
    return limits


def _price(metric: Metric, target: float, done: Sequence[RunRecord]) -> Price:
    prices = [price for run in done if (price := price_of(run, metric, target))]
    rounds, traffic, seconds = (_median_or_never([price[part] for price in prices], len(done)) for part in range(3))
    return Price(rounds, traffic, seconds, len(prices), len(done))


def price_of(run: RunRecord, metric: Metric, target: float) -> tuple[float, float, float] | None:
    """Rounds, megabytes (both ways), seconds until the mean of WINDOW evaluations reached the target; None: never."""
    curve = metric.curve(run)
    for end in range(WINDOW, len(curve) + 1):
        if statistics.fmean(value for _, value in curve[end - WINDOW : end]) >= target:
            number = curve[end - 1][0]
            traffic = sum(megabytes(row, "all") for row in run.rows if row["round"] <= number)
            seconds = sum(row["total"] for row in run.timings if row["round"] <= number)
            return float(number), traffic, seconds
    return None


def _median_or_never(values: Sequence[float], num_runs: int) -> float | None:
    """The median over all runs; None if it is a run that never reached the target."""
    padded = [*values, *([math.inf] * (num_runs - len(values)))]
    median = statistics.median(padded) if padded else math.inf
    return median if math.isfinite(median) else None


def _harmed(run: RunRecord, alone: RunRecord | None) -> float | None:
    """Share of clients with lower accuracy than under local training; None without such a run."""
    if alone is None or alone is run or alone.pairing["partition_sha256"] != run.pairing["partition_sha256"]:
        return None
    joined, local = own_accuracy(run), own_accuracy(alone)
    both = [client for client in joined if client in local]
    return statistics.fmean(joined[client] < local[client] for client in both) if both else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
