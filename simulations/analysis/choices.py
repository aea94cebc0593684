"""The choices of tuning: for each setting and method the candidates, their scores, and the chosen one."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd import strict_yaml
from simulations.analysis import metric
from simulations.analysis.grid import Words
from simulations.analysis.metric import Metric


@dataclass(frozen=True)
class Trial:
    """One candidate: its overrides, and the metric by seed; None for a run that is not done."""

    words: Words
    values: tuple[float | None, ...]

    @property
    def score(self) -> float | None:
        """The mean over seeds, by which candidates are chosen."""
        return mean(self.values)

    def value(self, key: str) -> str:
        """Its value of a key."""
        return next(word.partition("=")[2] for word in self.words if word.startswith(f"{key}="))


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
    chosen: Words

    @property
    def place(self) -> str:
        """`fedprox, alpha 0.1`."""
        return ", ".join(part for part in (self.method, self.setting) if part)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(word.partition("=")[0] for word in self.chosen)

    @property
    def is_made(self) -> bool:
        """Whether all runs of the chosen candidate are done."""
        return any(trial.words == self.chosen and trial.score is not None for trial in self.trials)

    def edges(self) -> Iterator[Edge]:
        """The chosen numbers at the edge of their candidates, by key."""
        for word in self.chosen if self.is_made else ():
            key, _, value = word.partition("=")
            numbers = {_number(trial.value(key)) for trial in self.trials}
            mine = _number(value)
            if mine is None or None in numbers:
                continue
            known = sorted(number for number in numbers if number is not None)
            if mine in (known[0], known[-1]) and mine != 0:  # 0 switches off: there is nothing beyond it
                yield Edge(key, value, "largest" if mine == known[-1] else "smallest")


@dataclass(frozen=True)
class Tuned:
    """All choices of a comparison, with the seeds and the metric behind them."""

    seeds: tuple[int, ...]
    metric: Metric
    choices: tuple[Choice, ...]

    def lines(self) -> Iterator[str]:
        """One line per choice: `fedprox, alpha 0.1: strategy.mu = 0.1 of 0.01, 0.1, 1 (71.20, 74.30, 70.10)`."""
        for choice in self.choices:
            tried = ", ".join(label(trial.words) for trial in choice.trials)
            scores = ", ".join(score(trial, self.metric) for trial in choice.trials)
            edges = "".join(f"   at the edge: {edge}" for edge in choice.edges())
            yield f"{choice.place}: {said(choice.chosen)} of {tried} ({scores}){edges}"


def of(tuning: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> Tuned | None:
    """The choices in a plan; None if nothing was tuned."""
    if tuning is None:
        return None
    choices = (
        Choice(
            row["setting"],
            row["method"],
            tuple(Trial(tuple(each["words"]), tuple(each["values"])) for each in row["tried"]),
            tuple(row["chosen"]),
        )
        for row in rows
    )
    return Tuned(tuple(tuning["seeds"]), metric.parse(tuning["metric"]), tuple(choices))


def said(words: Words) -> str:
    """`train.lr = 0.1, strategy.mu = 1`."""
    return ", ".join(f"{key} = {value}" for key, _, value in (word.partition("=") for word in words))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean over seeds; None if one is missing: a candidate that fails under one seed is not chosen."""
    given = [value for value in values if value is not None]
    return statistics.fmean(given) if given and len(given) == len(values) else None


def _number(text: str) -> float | None:
    found: Any = strict_yaml.scalar(text, "")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def label(words: Words) -> str:
    """`0.1`, or `mu 0.1 lr 0.01` if several keys vary together."""
    parts = [(key.rpartition(".")[2], value) for key, _, value in (word.partition("=") for word in words)]
    return parts[0][1] if len(parts) == 1 else " ".join(f"{key} {value}" for key, value in parts)


def score(trial: Trial, of: Metric) -> str:
    """The score as text: percent for accuracies."""
    return "failed" if trial.score is None else f"{trial.score * of.scale:.2f}"
