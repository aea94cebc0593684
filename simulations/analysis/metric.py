"""Metrics: one number of a run, as a path into its ledger and a rule over rounds. Free of torch."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd import extensions
from fedkd.config import METRICS
from fedkd.errors import ConfigError
from fedkd.record.ledger import Row
from simulations.analysis.run_record import RunRecord
from simulations.run import summary

WINDOWS: Mapping[str, int] = {"last5": 5, "last10": 10}  # rounds in the mean of a rule
RULES: Mapping[str, Callable[[Sequence[tuple[int, float]], int], float]] = {
    "last": lambda curve, end: curve[-1][1],
    "last5": lambda curve, end: _late(curve, end, WINDOWS["last5"]),
    "last10": lambda curve, end: _late(curve, end, WINDOWS["last10"]),
    "top5": lambda curve, end: statistics.fmean(sorted(value for _, value in curve)[-5:]),
    "best": lambda curve, end: max(value for _, value in curve),
    "mean": lambda curve, end: statistics.fmean(value for _, value in curve),
    "median": lambda curve, end: statistics.median(value for _, value in curve),
    "sum": lambda curve, end: math.fsum(value for _, value in curve),
}
OPTIMISTIC = frozenset({"top5", "best"})  # these rules pick rounds by the value that they report
FORGETTING = "forgetting"  # FedNTD's F up to a round: the only metric that needs several rows
COSTS = frozenset({"bytes", "seconds", "drift", "terms", FORGETTING})
PERCENT = frozenset({"accuracy", "local_accuracy", FORGETTING})  # fractions in the ledger
_OLD = {"forgetting.inside": "local_accuracy.in", "forgetting.outside": "local_accuracy.out"}  # names in older plans
_OF_ACCURACY = ("global", "clients", "trained", "common", "metrics")  # paths below `accuracy`
_MEASURED = "metrics."  # begins the path of one of `evaluate.metrics`
_LOWER = frozenset({"ece", "brier"})  # less is better
_RATE, _NO_LESS = (0.0, 1.0), (0.0, math.inf)
# A server's numbers whose names end like this are rates.
_SERVER_RATES = ("accuracy", "agreement", "fidelity", "coverage", "share", "harmed", "calibration")


@dataclass(frozen=True)
class Metric:
    """`clients.pooled top5`: the path of a round's number, and the rule that summarises the rounds.

    Paths: `global`, `clients.mean`, `clients.worst_decile`, `trained.clients.mean`, `common.mean`, ... are below
    `accuracy`, and so is `metrics.NAME`, one of `evaluate.metrics`; `local_accuracy.in`, `drift.weights`,
    `server.NAME`, `terms.NAME` as in metrics.jsonl; `bytes.up`, `bytes.down` and `bytes.all` in megabytes, all kinds
    together; `seconds.total` and its like are those of timings.jsonl; `forgetting` is FedNTD's F, from the accuracy by
    class of the rounds so far.
    """

    path: str
    rule: str

    def __str__(self) -> str:
        return f"{self.path} {self.rule}"

    @property
    def is_optimistic(self) -> bool:
        """Whether the rule picks rounds by the value that it reports."""
        return self.rule in OPTIMISTIC

    @property
    def is_percent(self) -> bool:
        """Whether the ledger has fractions, which are shown as percent."""
        return self.keys[0] in PERCENT and not self._name

    @property
    def scale(self) -> float:
        """The factor for display: 100 for fractions, else 1."""
        return 100.0 if self.is_percent else 1.0

    @property
    def unit(self) -> str:
        """The unit of a difference: `points` of a percentage, `MB`, `s`, or nothing."""
        return "points" if self.is_percent else {"bytes": "MB", "seconds": "s"}.get(self.keys[0], "")

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is better: costs, drift and losses."""
        return -1.0 if self.keys[0] in COSTS or (self._name and _is_lower_better(self._name)) else 1.0

    @property
    def _name(self) -> str:
        """Of `evaluate.metrics`; else empty."""
        return self.path.removeprefix(_MEASURED) if self.path.startswith(_MEASURED) else ""

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest possible value of a round, in the unit of the ledger."""
        first, *rest = self.keys
        if self._name:
            return (-math.inf, math.inf) if self._name not in METRICS else (0.0, 2.0 if self._name == "brier" else 1.0)
        if first == FORGETTING:
            return (-1.0, 1.0)
        if first in PERCENT and self.keys[-1] != "loss":
            return _RATE
        if first == "server":
            return _RATE if rest and rest[-1].endswith(_SERVER_RATES) else (-math.inf, math.inf)
        if first == "drift":
            return {"function": _RATE, "cosine": (-1.0, 1.0)}.get(rest[0], _NO_LESS)
        return _NO_LESS if first in COSTS - {"terms"} else (-math.inf, math.inf)

    def clipped(self, value: float) -> float:
        """The end of an interval, clipped to possible values, which a symmetric interval may exceed."""
        low, high = self.bounds
        return min(max(value, low), high)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys from a round's row to the number; the first may also be `seconds` or `bytes`."""
        parts = tuple(self.path.split("."))
        return ("accuracy", *parts) if parts[0] in _OF_ACCURACY else parts

    def value(self, run: RunRecord) -> float | None:
        """The number of a run, in fractions or megabytes; None if no round has it."""
        curve = self.curve(run)
        return RULES[self.rule](curve, run.rows[-1]["round"]) if curve else None

    def curve(self, run: RunRecord) -> list[tuple[int, float]]:
        """(round, number) of the rounds that have it."""
        first, *rest = self.keys
        if first == "seconds":
            return [(row["round"], value) for row in run.timings if (value := _at(row, rest)) is not None]
        if first == FORGETTING:
            return list(summary.forgetting(run.rows).items())
        if first == "bytes":
            return [(row["round"], megabytes(row, rest[0])) for row in run.rows]
        return [(row["round"], value) for row in run.rows if (value := _at(row, self.keys)) is not None]


def default(serves: Iterable[str]) -> Metric:
    """The default primary metric: the last 10 rounds of the student that all strategies serve.

    `serves`: per strategy `global`, `personal` or `both`, as in `fedkd list strategies`.
    """
    return Metric("clients.mean" if "personal" in serves else "global", "last10")


def parse(text: str, where: str = "") -> Metric:
    """`clients.mean last10`, or a path alone (its rule is then last10). Raises ConfigError."""
    path, _, rule = text.strip().partition(" ")
    metric = Metric(_OLD.get(path, path), rule.strip() or "last10")
    if metric.rule not in RULES:
        raise ConfigError(
            f"metric '{text}' has no rule '{metric.rule}'", where=where, mend=f"one of: {', '.join(RULES)}"
        )
    first, *rest = metric.keys
    name = path.removeprefix(_MEASURED)
    if path.startswith(_MEASURED) and name not in METRICS and extensions.find("metric", name) is None:
        mend = f"one of: {', '.join(METRICS)}, or add --py FILE with @fedkd.register.metric"
        raise ConfigError(f"there is no metric '{name}'", where=where, mend=mend)
    known = ("accuracy", "local_accuracy", "drift", "server", "terms", "bytes", "seconds")
    if metric.path != FORGETTING and (first not in known or not rest):
        raise ConfigError(
            f"no run records the metric '{text}'",
            where=where,
            mend="e.g. 'global last10', 'clients.mean last', 'clients.pooled top5', 'local_accuracy.out last'",
        )
    if first == "bytes" and rest not in (["up"], ["down"], ["all"]):
        raise ConfigError(
            f"metric '{text}': bytes go up, down or all", where=where, mend="bytes.up, bytes.down, bytes.all"
        )
    return metric


def _is_lower_better(name: str) -> bool:
    found = None if name in METRICS else extensions.find("metric", name)
    return name in _LOWER or bool(found and found.options.get("lower"))


def megabytes(row: Row, way: str) -> float:
    """Traffic of a round, `up`, `down` or `all`, in 10^6 bytes."""
    ways = ("up", "down") if way == "all" else (way,)
    return math.fsum(sum(row["bytes"][direction].values()) for direction in ways) / 1e6


def _late(curve: Sequence[tuple[int, float]], end: int, rounds: int) -> float:
    """Mean over the evaluated ones among the last rounds; a run always evaluates its last round."""
    return statistics.fmean(value for number, value in curve if number > end - rounds)


def _at(row: Any, path: Sequence[str]) -> float | None:
    for part in path:
        row = row.get(part) if isinstance(row, Mapping) else None
    return float(row) if isinstance(row, int | float) and not isinstance(row, bool) else None
