"""Tables of the runs: their state, their failures, and the keys in which their configurations differ."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fedkd.errors import FedkdError
from fedkd.record import ledger
from simulations.analysis.metric import Metric
from simulations.analysis.result import Verdict
from simulations.analysis.run_record import RunRecord
from simulations.report import number_text, summary_table
from simulations.report.summary_table import Table

_BYTES, _SECONDS = Metric("bytes.all", "sum"), Metric("seconds.total", "sum")
_LONGEST = 160  # characters of a value or a reason in a table


def all_runs(verdict: Verdict) -> list[RunRecord]:
    """All runs, in the order of the summary table; runs without a result last."""
    runs = [run for result in summary_table.ordered(verdict) for run in result.runs]
    return runs + [run for run in verdict.failed if run not in runs]


def run_table(verdict: Verdict) -> Table:
    """A row per run."""
    question, has_settings, rows = verdict.question, any(verdict.question.settings), []
    metrics = {str(question.metric): question.metric, **summary_table.further(question)}
    costs = {unit: metric for unit, metric in (("MB", _BYTES), ("s", _SECONDS)) if metric not in metrics.values()}
    for run in all_runs(verdict):
        figures = [number_text.figure(_value(run, metric), metric) for metric in metrics.values()]
        cost = [number_text.figure(_value(run, metric)) for metric in costs.values()]
        rounds = f"{len(run.rows)} of {run.info.get('num_rounds', '?')}"
        key = (*([run.setting] * has_settings), run.method, str(run.seed), run.state, rounds)
        rows.append((*key, *figures, *cost, cut(remark(run)), str(run.folder)))
    titles = (f"{title}{number_text.unit(metric)}" for title, metric in metrics.items())
    headings = (*(["setting"] * has_settings), "strategy", "seed", "state", "rounds", *titles, *costs)
    return Table((*headings, "remark", "folder"), tuple(rows))


def remark(run: RunRecord) -> str:
    """Why a run does not count, how many client replies were lost, and how many clients never took part."""
    never = f"{number_text.count(run.untrained, 'client')} never took part" if run.untrained else ""
    return "; ".join(part for part in (run.reason, lost_replies(run), never) if part)


def lost_replies(run: RunRecord) -> str:
    """`3 replies failed, 1 late`."""
    counts = Counter(row["state"] for row in run.clients if row.get("state", "ok") != "ok")
    parts = [f"{number} {state}" for state, number in sorted(counts.items())]
    return f"client replies: {', '.join(parts)}" if parts else ""


def failure_table(verdict: Verdict) -> Table | None:
    """Runs that do not count, and the client failures of all runs, equal ones together."""
    rows = [(run.name, run.state, "run", cut(run.reason)) for run in verdict.failed]
    for run in all_runs(verdict):
        for (state, reason), clients in _lost(run).items():
            rows.append((run.name, state, f"{len(clients)} of its replies", cut(reason)))
    return Table(("run", "state", "how many", "reason"), tuple(rows)) if rows else None


def differing(configs: Sequence[Mapping[str, Any]], ignored: Iterable[str] = ("seed",)) -> list[str]:
    """Keys that decide results and whose values differ, in the order of the schema.

    A key that only one strategy has just repeats its name, so it counts only if it has two values.
    """
    from fedkd.configuration.resolved import MACHINE_FACTS, NAMES

    keys = dict.fromkeys(key for config in configs for key in config)
    excluded = {*MACHINE_FACTS, *NAMES, *ignored}
    if all(config.get("data.name") == "own" for config in configs):
        excluded -= {"data.root"}  # it names the data
    return [key for key in keys if key not in excluded and _differs(key, configs)]


def cut(text: str) -> str:
    """One line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _value(run: RunRecord, metric: Metric) -> float | None:
    return metric.value(run) if run.rows else None


def _lost(run: RunRecord) -> dict[tuple[str, str], list[int]]:
    """(state, reason) -> clients; the reason is from events.jsonl if the ledger has only a type."""
    by_reason: dict[tuple[str, str], list[int]] = {}
    lost = [row for row in run.clients if row.get("state", "ok") != "ok"]
    texts = _event_texts(run) if lost else {}
    for row in lost:
        cause = str(row.get("reason") or row.get("cause") or "")
        reason = texts.get((row.get("round"), row.get("client")), cause)
        by_reason.setdefault((str(row["state"]), reason), []).append(row["client"])
    return by_reason


def _event_texts(run: RunRecord) -> dict[tuple[Any, Any], str]:
    with suppress(FedkdError, OSError):
        events = ledger.rows(run.folder / ledger.EVENTS)
        failed = (row for row in events if row.get("event") == "failure")
        return {(row.get("round"), row.get("client")): str(row.get("what", "")) for row in failed}
    return {}


def _differs(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    values = {_plain(config[key]) for config in configs if key in config}
    return len(values) > 1 or (not key.startswith("strategy.") and any(key not in config for config in configs))


def _plain(value: Any) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
