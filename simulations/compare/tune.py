"""`--tune`: hyper-parameters chosen for each setting and method on validation data, with the same budget for all.

Candidates are evaluated on held-out training data of the clients, never on test data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd import errors
from fedkd.configuration.resolved import Resolved
from fedkd.errors import ConfigError, Mistake
from simulations.analysis import candidates, cells, choices, grid, metric, plan, run_record
from simulations.analysis.cells import Grid
from simulations.analysis.grid import Asked, Pair, Words
from simulations.analysis.plan import Cell, Plan

BELOW = "tuning"
VALIDATION = "evaluate.on=validation"
_ONE = "leave one of them out"


@dataclass(frozen=True)
class Tuning:
    """The candidates of each method, and their grids.

    The i-th grid has the i-th candidate of each method, and the last of those that have fewer.
    """

    candidates: Mapping[str, tuple[Words, ...]]
    grids: tuple[Grid, ...]
    seeds: tuple[int, ...]
    metric: str

    @property
    def is_asked(self) -> bool:
        return any(map(self._is_tuned, self.candidates))

    def _is_tuned(self, method: str) -> bool:
        return self.candidates[method] != candidates.NOTHING

    def trials(self) -> dict[Cell, Resolved]:
        """The trial cells: the first candidate of all methods, then the second, and so on."""
        return {cell: its for index in range(len(self.grids)) for cell, its in self._trials(index).items()}

    def _trials(self, index: int) -> dict[Cell, Resolved]:
        """The trials of the candidates at one index, for methods that have so many."""
        found = self.grids[index]
        there = [pair for pair in found.words if self._is_tuned(pair[1]) and index < len(self.candidates[pair[1]])]
        tried = replace(found, words={pair: found.words[pair] for pair in there})
        return plan.cells(_on_validation(tried), self.seeds, BELOW)

    def note(self) -> dict[str, Any] | None:
        """The tuning as plan.yaml records it."""
        if not self.is_asked:
            return None
        tried = {method: [list(words) for words in each] for method, each in self.candidates.items()}
        return {"candidates": tried, "seeds": list(self.seeds), "metric": self.metric}

    def grid(self, rows: Sequence[Mapping[str, Any]]) -> Grid:
        """The grid with the chosen overrides of each setting and method."""
        chosen = {
            (row["setting"], row["method"]): self.candidates[row["method"]].index(tuple(row["chosen"])) for row in rows
        }
        picked = {pair: self.grids[chosen.get(pair, 0)] for pair in self.grids[0].words}
        return replace(
            self.grids[0],
            words={pair: its.words[pair] for pair, its in picked.items()},
            resolved={pair: its.resolved[pair] for pair, its in picked.items()},
        )

    def rows(self, folder: Path) -> tuple[dict[str, Any], ...]:
        """For each setting and method the candidates, their values by seed, and the choice: the best mean, the first of
        equal ones; never a candidate that failed under a seed."""
        values = self._values(folder)
        rows = []
        for pair in filter(lambda pair: self._is_tuned(pair[1]), self.grids[0].words):
            its = self.candidates[pair[1]]
            tried = [values[index, pair] for index in range(len(its))]
            best = max(range(len(tried)), key=lambda index: self._score(tried[index]))
            found = [{"words": list(words), "values": given} for words, given in zip(its, tried, strict=True)]
            place = dict(zip(("setting", "method"), pair, strict=True))
            rows.append(place | {"tried": found, "chosen": list(its[best])})
        return tuple(rows)

    def _values(self, folder: Path) -> dict[tuple[int, Pair], list[float | None]]:
        """The metric of each candidate in each pair, by seed; None for an unfinished trial."""
        asked, found = metric.parse(self.metric), dict[tuple[int, Pair], list[float | None]]()
        for index in range(len(self.grids)):
            for cell in self._trials(index):
                place = folder / cell.folder
                is_done = plan.is_done(place, cell.digest)
                value = asked.of(run_record.read(cell.setting, cell.method, cell.seed, place)) if is_done else None
                found.setdefault((index, (cell.setting, cell.method)), []).append(value)
        return found

    def _score(self, values: Sequence[float | None]) -> float:
        mean = choices.mean(values)
        return float("-inf") if mean is None else metric.parse(self.metric).sign * mean


def ask(asked: Asked, before: Plan | None, announce: Callable[[], None]) -> Tuning:
    """The grids of all candidates, checked before anything runs. Raises ConfigError."""
    tried = candidates.of(asked.tune, asked)
    _check_disjoint(asked, tried)
    if not 1 <= asked.tune_seeds <= len(asked.seeds):
        what = f"--tune-seeds {asked.tune_seeds} of {len(asked.seeds)} seeds"
        raise ConfigError(what, where=grid.COMMAND_LINE, mend="choose at least 1, and no more than there are")
    grids = _grids(asked, tried, announce)
    then = before.tuning if before else None  # a choice is final: longer seed lists do not change it
    if then and len(then["seeds"]) != asked.tune_seeds:
        what = f"--tune-seeds {asked.tune_seeds}: this folder was tuned on {len(then['seeds'])}"
        raise ConfigError(what, where=grid.COMMAND_LINE, mend="choose another --name")
    seeds = tuple(then["seeds"]) if then else asked.seeds[: asked.tune_seeds]
    return Tuning(tried, grids, seeds, then["metric"] if then else str(grids[0].primary))


def _grids(asked: Asked, tried: Mapping[str, Sequence[Words]], announce: Callable[[], None]) -> tuple[Grid, ...]:
    """A grid for each index of the candidates. Raises ConfigError with the mistakes of all."""
    mistakes: list[Mistake] = []
    grids, made = [], dict[Words, Resolved]()
    for index in range(max(map(len, tried.values()))):
        chosen = {method: each[min(index, len(each) - 1)] for method, each in tried.items()}
        words = {pair: (*its, *chosen[pair[1]]) for pair, its in asked.words.items()}
        try:
            grids.append(cells.check(replace(asked, words=words), announce if not index else lambda: None, made))
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse(mistakes)
    return tuple(grids)


def _check_disjoint(asked: Asked, tried: Mapping[str, Sequence[Words]]) -> None:
    """Raises ConfigError for a key that is both tuned and set."""
    twice: list[Mistake] = []
    for (_, method), words in asked.words.items():
        given = {word.partition("=")[0] for word in words}
        tuned = [word.partition("=")[0] for word in tried[method][0]]
        twice += (Mistake(f"{key} is both set and tuned", candidates.WHERE, _ONE) for key in tuned if key in given)
    errors.refuse(twice)


def _on_validation(found: Grid) -> Grid:
    """The same cells, evaluated on held-out training data."""
    words = {pair: (*its, VALIDATION) for pair, its in found.words.items()}
    resolved = {pair: _judged(each) for pair, each in found.resolved.items()}
    return replace(found, words=words, resolved=resolved)


def _judged(found: Resolved) -> Resolved:
    config = replace(found.config, evaluate=replace(found.config.evaluate, on="validation"))
    return replace(found, config=config, sources={**found.sources, "evaluate.on": grid.COMMAND_LINE})
