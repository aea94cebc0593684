"""Tables of the runs themselves: where each stands, what failed, and which keys of their configurations differ."""

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
    """All runs, in the order of the closing table; those without an result last."""
    found = [run for result in summary_table.ordered(verdict) for run in result.runs]
    return found + [run for run in verdict.failed if run not in found]


def run_table(verdict: Verdict) -> Table:
    """A row a run."""
    question, rows = verdict.question, []
    titles = {str(question.metric): question.metric, **summary_table.further(question)}
    costs = {unit: each for unit, each in (("MB", _BYTES), ("s", _SECONDS)) if each not in titles.values()}
    for run in all_runs(verdict):
        figures = [number_text.figure(_value(run, each), each) for each in titles.values()]
        cost = [number_text.figure(_value(run, each)) for each in costs.values()]
        played = f"{len(run.rows)} of {run.info.get('num_rounds', '?')}"
        where = (run.method, str(run.seed), run.state, played)
        setting = (run.setting,) if any(question.settings) else ()
        rows.append((*setting, *where, *figures, *cost, cut(remark(run)), str(run.folder)))
    measured = (f"{title}{number_text.unit(each)}" for title, each in titles.items())
    places = ("setting",) if any(question.settings) else ()
    headings = (*places, "strategy", "seed", "state", "rounds", *measured, *costs, "remark", "folder")
    return Table(headings, tuple(rows))


def remark(run: RunRecord) -> str:
    """Why a run does not count, how many replies of its clients did not, and how many clients never took part."""
    never = f"{number_text.count(run.untrained, 'client')} never took part" if run.untrained else ""
    return "; ".join(part for part in (run.reason, lost_replies(run), never) if part)


def lost_replies(run: RunRecord) -> str:
    """`3 replies failed, 1 late`."""
    found = Counter(row["state"] for row in run.clients if row.get("state", "ok") != "ok")
    parts = [f"{number} {state}" for state, number in sorted(found.items())]
    return f"client replies: {', '.join(parts)}" if parts else ""


def failure_table(verdict: Verdict) -> Table | None:
    """Runs that do not count, and the clients' failures of all, alike ones together."""
    rows = [(run.name, run.state, "run", cut(run.reason)) for run in verdict.failed]
    for run in all_runs(verdict):
        for (state, why), clients in _lost(run).items():
            rows.append((run.name, state, f"{len(clients)} of its replies", cut(why)))
    return Table(("run", "state", "how many", "reason"), tuple(rows)) if rows else None


def differing(configs: Sequence[Mapping[str, Any]], ignored: Iterable[str] = ("seed",)) -> list[str]:
    """Keys that decide results and whose values differ, in the order of the schema.

    Keys of a strategy that only one strategy has say nothing but its name, so they count only if two values are seen.
    """
    from fedkd.configuration.resolved import MACHINE_FACTS, NAMES

    keys = dict.fromkeys(key for config in configs for key in config)
    left_out = {*MACHINE_FACTS, *NAMES, *ignored}
    if all(config.get("data.name") == "own" for config in configs):
        left_out -= {"data.root"}  # it says which data
    return [key for key in keys if key not in left_out and _differs(key, configs)]


def cut(text: str) -> str:
    """One line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _value(run: RunRecord, metric: Metric) -> float | None:
    return metric.value(run) if run.rows else None


def _lost(run: RunRecord) -> dict[tuple[str, str], list[int]]:
    """(state, reason) -> clients; words of events.jsonl where the ledger has only a type."""
    found: dict[tuple[str, str], list[int]] = {}
    lost = [row for row in run.clients if row.get("state", "ok") != "ok"]
    words = _words(run) if lost else {}
    for row in lost:
        said = str(row.get("reason") or row.get("cause") or "")
        why = words.get((row.get("round"), row.get("client")), said)
        found.setdefault((str(row["state"]), why), []).append(row["client"])
    return found


def _words(run: RunRecord) -> dict[tuple[Any, Any], str]:
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


def spans(seeds: Sequence[int]) -> str:
    """`1 to 5`, or `1, 2, 7`."""
    ordered = sorted(seeds)
    is_range = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]} to {ordered[-1]}" if is_range else ", ".join(map(str, ordered))
