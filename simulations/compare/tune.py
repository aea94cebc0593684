"""`--tune`: hyper-parameters chosen for each setting and method on validation data, with the same budget for all.

Candidates are played on a share of the clients' training data that is held out for it; test data are never looked at.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.errors import ConfigError, Mistake
from fedkd.resolved import Resolved
from simulations.compare import cells, grid, member, metric, plan
from simulations.compare.cells import Announce, Grid
from simulations.compare.grid import Asked, Pair, Words
from simulations.compare.plan import Cell, Plan

BELOW = "tuning"
WHERE = "--tune"
VALIDATION = "evaluate.on=validation"
_SHORT = {"lr": "train.lr"}


@dataclass(frozen=True)
class Tuning:
    """What is tried: candidates, each with the grid that it makes; one without words where nothing is tuned."""

    candidates: tuple[Words, ...]
    grids: tuple[Grid, ...]
    seeds: tuple[int, ...]
    metric: str

    @property
    def is_asked(self) -> bool:
        return any(self.candidates)

    def trials(self) -> list[Cell]:
        """The cells that decide: the first candidate of all methods, then the next."""
        found = (plan.cells(_on_validation(each), self.seeds, BELOW) for each in self.grids)
        return [cell for its in found for cell in its] if self.is_asked else []

    def note(self) -> dict[str, Any] | None:
        """What plan.yaml says of it."""
        if not self.is_asked:
            return None
        return {"words": [list(each) for each in self.candidates], "seeds": list(self.seeds), "metric": self.metric}

    def grid(self, rows: Sequence[Mapping[str, Any]]) -> Grid:
        """The grid in which each setting and method has the words that were chosen for it."""
        chosen = {(row["setting"], row["method"]): self.candidates.index(tuple(row["chosen"])) for row in rows}
        picked = {pair: self.grids[chosen.get(pair, 0)] for pair in self.grids[0].words}
        return replace(
            self.grids[0],
            words={pair: its.words[pair] for pair, its in picked.items()},
            resolved={pair: its.resolved[pair] for pair, its in picked.items()},
        )

    def rows(self, folder: Path) -> tuple[dict[str, Any], ...]:
        """For each setting and method what was tried, what it gave by seed, and what is taken: the best mean, the first
        of equal ones; nothing that failed under one of the seeds."""
        if not self.is_asked:
            return ()
        values = self._values(folder)
        rows = []
        for pair in self.grids[0].words:
            tried = [values[index, pair] for index in range(len(self.candidates))]
            best = max(range(len(tried)), key=lambda index: self._score(tried[index]))
            found = [{"words": list(w), "values": v} for w, v in zip(self.candidates, tried, strict=True)]
            rows.append(
                dict(zip(("setting", "method"), pair, strict=True))
                | {"tried": found, "chosen": list(self.candidates[best])}
            )
        return tuple(rows)

    def _values(self, folder: Path) -> dict[tuple[int, Pair], list[float | None]]:
        """The metric of each candidate in each pair, by seed; None where a trial is not done."""
        asked, found = metric.parse(self.metric), dict[tuple[int, Pair], list[float | None]]()
        for index, each in enumerate(self.grids):
            for cell in plan.cells(_on_validation(each), self.seeds, BELOW):
                place = folder / cell.folder
                is_done = plan.is_done(place, cell.digest)
                value = asked.of(member.read(cell.setting, cell.method, cell.seed, place)) if is_done else None
                found.setdefault((index, (cell.setting, cell.method)), []).append(value)
        return found

    def _score(self, values: Sequence[float | None]) -> float:
        given = [value for value in values if value is not None]
        if len(given) < len(values):
            return float("-inf")
        return metric.parse(self.metric).sign * statistics.fmean(given)


def candidates(texts: Sequence[str]) -> tuple[Words, ...]:
    """The combinations of values that `--tune KEY=a,b,c`, given once or more, stand for. Raises ConfigError."""
    axes = grid.read([_long(text) for text in texts])
    mistakes = [Mistake(f"'{text}' is no list", WHERE, "write key=a,b,c") for text in texts if "=" not in text]
    mistakes += [Mistake(f"{axis.key} has one value", WHERE, "write key=a,b,c") for axis in axes if not axis.is_list]
    mistakes += [
        Mistake(f"{axis.key} cannot be tuned", WHERE, "tune what belongs to the training")
        for axis in axes
        if axis.key.split(".")[0] in ("seed", "strategy", "preset", "comparison", "data", "partition", "evaluate")
        and not axis.key.startswith("strategy.")
    ]
    if mistakes:
        raise ConfigError(mistakes[0].what, mistakes=tuple(mistakes))
    return tuple(
        tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    )


def ask(asked: Asked, tried: tuple[Words, ...], num_seeds: int, before: Plan | None, announce: Announce) -> Tuning:
    """The grid of each candidate, all checked before anything runs. Raises ConfigError."""
    _check_disjoint(asked, tried)
    if not 1 <= num_seeds <= len(asked.seeds):
        what = f"--tune-seeds {num_seeds} of {len(asked.seeds)} seeds"
        raise ConfigError(what, where=grid.COMMAND_LINE, mend="choose at least 1, and no more than there are")
    mistakes: dict[Mistake, None] = {}
    grids = []
    for words in tried:
        try:
            more = {pair: (*its, *words) for pair, its in asked.words.items()}
            grids.append(cells.check(replace(asked, words=more), announce if words == tried[0] else lambda data: None))
        except ConfigError as error:
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise ConfigError(next(iter(mistakes)).what, mistakes=tuple(mistakes))
    then = before.tuning if before else None  # chosen once, a choice stays: longer seed lists do not move it
    if then and len(then["seeds"]) != num_seeds:
        what = f"--tune-seeds {num_seeds}: this folder was tuned on {len(then['seeds'])}"
        raise ConfigError(what, where=grid.COMMAND_LINE, mend="choose another --name")
    seeds = tuple(then["seeds"]) if then else asked.seeds[:num_seeds]
    return Tuning(tried, tuple(grids), seeds, then["metric"] if then else str(grids[0].primary))


def _check_disjoint(asked: Asked, tried: tuple[Words, ...]) -> None:
    """Raises ConfigError for a key that is both tuned and given."""
    keys = {word.partition("=")[0] for words in asked.words.values() for word in words}
    twice = [key for word in tried[0] if (key := word.partition("=")[0]) in keys]
    if twice:
        raise ConfigError(f"{twice[0]} is given and tuned", where=WHERE, mend="leave one of them out")


def _on_validation(found: Grid) -> Grid:
    """The same cells judged on what is held out of the training data."""
    words = {pair: (*its, VALIDATION) for pair, its in found.words.items()}
    resolved = {pair: _judged(each) for pair, each in found.resolved.items()}
    return replace(found, words=words, resolved=resolved)


def _judged(found: Resolved) -> Resolved:
    return replace(found, config=replace(found.config, evaluate=replace(found.config.evaluate, on="validation")))


def _long(text: str) -> str:
    key, equals, values = text.partition("=")
    return _SHORT.get(key.strip(), key.strip()) + equals + values
