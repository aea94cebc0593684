"""The choices of tuning: for each setting and method the candidates, their scores, and the chosen one."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd import strict_yaml
from simulations.analysis.grid import Overrides
from simulations.analysis.metric import Metric, parse


@dataclass(frozen=True)
class Trial:
    """One candidate: its overrides, and the metric by seed; None for an unfinished run."""

    overrides: Overrides
    values: tuple[float | None, ...]

    @property
    def score(self) -> float | None:
        """The mean over seeds, by which candidates are chosen."""
        return mean(self.values)

    def value(self, key: str) -> str:
        """The candidate's value of a key."""
        return next(override.partition("=")[2] for override in self.overrides if override.startswith(f"{key}="))


@dataclass(frozen=True)
class Edge:
    """A chosen number at the edge of the candidates."""

    key: str
    value: str
    end: str  # `largest` or `smallest`

    def __str__(self) -> str:
        return f"{self.key} = {self.value} is the {self.end} that was tried"


@dataclass(frozen=True)
class Choice:
    """The trials of a method in a setting, and the chosen candidate."""

    setting: str
    method: str
    trials: tuple[Trial, ...]
    chosen: Overrides

    @property
    def place(self) -> str:
        """`fedprox, alpha 0.1`."""
        return ", ".join(part for part in (self.method, self.setting) if part)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(override.partition("=")[0] for override in self.chosen)

    @property
    def is_made(self) -> bool:
        """Whether all runs of the chosen candidate are done."""
        return any(trial.overrides == self.chosen and trial.score is not None for trial in self.trials)

    def edges(self) -> Iterator[Edge]:
        """The chosen numbers at the edge of their candidates, by key."""
        for override in self.chosen if self.is_made else ():
            key, _, value = override.partition("=")
            numbers = {_number(trial.value(key)) for trial in self.trials}
            number = _number(value)
            if number is None or None in numbers:
                continue
            ordered = sorted(candidate for candidate in numbers if candidate is not None)
            if number in (ordered[0], ordered[-1]) and number != 0:  # 0 switches a term off: no value lies beyond it
                yield Edge(key, value, "largest" if number == ordered[-1] else "smallest")


@dataclass(frozen=True)
class Tuned:
    """All choices of a comparison, with the seeds and the metric behind them."""

    seeds: tuple[int, ...]
    metric: Metric
    choices: tuple[Choice, ...]

    def lines(self) -> Iterator[str]:
        """One line per choice: `fedprox, alpha 0.1: strategy.mu = 0.1 of 0.01, 0.1, 1 (71.20, 74.30, 70.10)`."""
        for choice in self.choices:
            labels = ", ".join(label(trial.overrides) for trial in choice.trials)
            scores = ", ".join(score(trial, self.metric) for trial in choice.trials)
            edges = "".join(f"   at the edge: {edge}" for edge in choice.edges())
            yield f"{choice.place}: {assignments(choice.chosen)} of {labels} ({scores}){edges}"


def from_plan(tuning: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> Tuned | None:
    """The choices in a plan; None if nothing was tuned."""
    if tuning is None:
        return None
    choices = (
        Choice(
            row["setting"],
            row["method"],
            tuple(Trial(tuple(trial["words"]), tuple(trial["values"])) for trial in row["tried"]),
            tuple(row["chosen"]),
        )
        for row in rows
    )
    return Tuned(tuple(tuning["seeds"]), parse(tuning["metric"]), tuple(choices))


def assignments(overrides: Overrides) -> str:
    """`train.lr = 0.1, strategy.mu = 1`."""
    return ", ".join(f"{key} = {value}" for key, _, value in (override.partition("=") for override in overrides))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean over seeds; None if a value is missing: a candidate that fails under one seed is not chosen."""
    finished = [value for value in values if value is not None]
    return statistics.fmean(finished) if finished and len(finished) == len(values) else None


def _number(text: str) -> float | None:
    value: Any = strict_yaml.scalar(text, "")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def label(overrides: Overrides) -> str:
    """`0.1`, or `mu 0.1 lr 0.01` if several keys vary together."""
    parts = [(key.rpartition(".")[2], value) for key, _, value in (override.partition("=") for override in overrides)]
    return parts[0][1] if len(parts) == 1 else " ".join(f"{key} {value}" for key, value in parts)


def score(trial: Trial, metric: Metric) -> str:
    """The score as text: percent for accuracies."""
    return "failed" if trial.score is None else f"{trial.score * metric.scale:.2f}"
