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
from simulations.analysis.grid import ComparisonRequest, Overrides, Pair
from simulations.analysis.plan import Cell, ComparisonPlan

BELOW = "tuning"
VALIDATION = "evaluate.on=validation"
_ONE = "leave one of them out"


@dataclass(frozen=True)
class Tuning:
    """The candidates of each method, and their grids.

    The i-th grid has the i-th candidate of each method; methods with fewer candidates keep their last one.
    """

    candidates: Mapping[str, tuple[Overrides, ...]]
    grids: tuple[Grid, ...]
    seeds: tuple[int, ...]
    metric: str

    def _is_tuned(self, method: str) -> bool:
        return self.candidates[method] != candidates.NOTHING

    def trials(self) -> dict[Cell, Resolved]:
        """The trial cells: the first candidate of all methods, then the second, and so on."""
        return {cell: trial for index in range(len(self.grids)) for cell, trial in self._trials(index).items()}

    def _trials(self, index: int) -> dict[Cell, Resolved]:
        """The trials of the candidates at one index, for tuned methods that have so many."""
        grid = self.grids[index]
        pairs = [pair for pair in grid.overrides if self._is_tuned(pair[1]) and index < len(self.candidates[pair[1]])]
        tuned = replace(grid, overrides={pair: grid.overrides[pair] for pair in pairs})
        return plan.cells(_on_validation(tuned), self.seeds, BELOW)

    def note(self) -> dict[str, Any] | None:
        """The tuning as plan.yaml records it; None if no method is tuned."""
        if not any(map(self._is_tuned, self.candidates)):
            return None
        tried = {method: list(map(list, own)) for method, own in self.candidates.items()}
        return {"candidates": tried, "seeds": list(self.seeds), "metric": self.metric}

    def grid(self, rows: Sequence[Mapping[str, Any]]) -> Grid:
        """The grid with the chosen overrides of each setting and method."""
        chosen = {
            (row["setting"], row["method"]): self.candidates[row["method"]].index(tuple(row["chosen"])) for row in rows
        }
        picked = {pair: self.grids[chosen.get(pair, 0)] for pair in self.grids[0].overrides}
        return replace(
            self.grids[0],
            overrides={pair: grid.overrides[pair] for pair, grid in picked.items()},
            resolved={pair: grid.resolved[pair] for pair, grid in picked.items()},
        )

    def rows(self, folder: Path) -> tuple[dict[str, Any], ...]:
        """For each tuned pair the candidates, their values by seed, and the choice.

        The choice has the best mean; the first one wins a tie. A candidate that failed under a seed is never chosen.
        """
        values = self._values(folder)
        rows = []
        for setting, method in self.grids[0].overrides:
            if not self._is_tuned(method):
                continue
            own = self.candidates[method]
            scores = [values[index, (setting, method)] for index in range(len(own))]
            best = max(range(len(own)), key=lambda index: self._score(scores[index]))
            tried = [{"words": list(one), "values": by_seed} for one, by_seed in zip(own, scores, strict=True)]
            rows.append({"setting": setting, "method": method, "tried": tried, "chosen": list(own[best])})
        return tuple(rows)

    def _values(self, folder: Path) -> dict[tuple[int, Pair], list[float | None]]:
        """The metric of each candidate in each pair, by seed; None for an unfinished trial."""
        primary, values = metric.parse(self.metric), dict[tuple[int, Pair], list[float | None]]()
        for index in range(len(self.grids)):
            for cell in self._trials(index):
                path = folder / cell.folder
                is_done = plan.is_done(path, cell.digest)
                value = primary.value(run_record.read(cell.setting, cell.method, cell.seed, path)) if is_done else None
                values.setdefault((index, (cell.setting, cell.method)), []).append(value)
        return values

    def _score(self, values: Sequence[float | None]) -> float:
        mean = choices.mean(values)
        return float("-inf") if mean is None else metric.parse(self.metric).sign * mean


def ask(request: ComparisonRequest, before: ComparisonPlan | None, announce: Callable[[], None]) -> Tuning:
    """The grids of all candidates, checked before anything runs. Raises ConfigError."""
    tried = candidates.parse(request.tune, request)
    _check_disjoint(request, tried)
    if not 1 <= request.tune_seeds <= len(request.seeds):
        problem = f"--tune-seeds {request.tune_seeds} of {len(request.seeds)} seeds"
        raise ConfigError(problem, where=grid.COMMAND_LINE, mend="choose at least 1, and at most the number of seeds")
    grids = _grids(request, tried, announce)
    earlier = before.tuning if before else None  # a choice is final: longer seed lists do not change it
    if earlier and len(earlier["seeds"]) != request.tune_seeds:
        problem = f"--tune-seeds {request.tune_seeds}: this folder was tuned on {len(earlier['seeds'])}"
        raise ConfigError(problem, where=grid.COMMAND_LINE, mend="choose another --name")
    seeds = tuple(earlier["seeds"]) if earlier else request.seeds[: request.tune_seeds]
    return Tuning(tried, grids, seeds, earlier["metric"] if earlier else str(grids[0].primary))


def _grids(
    request: ComparisonRequest, tried: Mapping[str, Sequence[Overrides]], announce: Callable[[], None]
) -> tuple[Grid, ...]:
    """A grid for each index of the candidates. Raises ConfigError with the mistakes of all."""
    mistakes: list[Mistake] = []
    grids, cache = [], dict[Overrides, Resolved]()
    for index in range(max(map(len, tried.values()))):
        chosen = {method: own[min(index, len(own) - 1)] for method, own in tried.items()}
        indexed = replace(request, overrides={pair: (*o, *chosen[pair[1]]) for pair, o in request.overrides.items()})
        try:
            grids.append(cells.check(indexed, announce if not index else lambda: None, cache))
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse(mistakes)
    return tuple(grids)


def _check_disjoint(request: ComparisonRequest, tried: Mapping[str, Sequence[Overrides]]) -> None:
    """Raises ConfigError for a key that is both tuned and set."""
    mistakes: list[Mistake] = []
    for (_, method), overrides in request.overrides.items():
        fixed = {override.partition("=")[0] for override in overrides}
        tuned = [override.partition("=")[0] for override in tried[method][0]]
        mistakes += (Mistake(f"{key} is both set and tuned", candidates.WHERE, _ONE) for key in tuned if key in fixed)
    errors.refuse(mistakes)


def _on_validation(trials: Grid) -> Grid:
    """The same cells, evaluated on held-out training data."""
    overrides = {pair: (*own, VALIDATION) for pair, own in trials.overrides.items()}
    resolved = {pair: _validated(configuration) for pair, configuration in trials.resolved.items()}
    return replace(trials, overrides=overrides, resolved=resolved)


def _validated(resolved: Resolved) -> Resolved:
    config = replace(resolved.config, evaluate=replace(resolved.config.evaluate, on="validation"))
    return replace(resolved, config=config, sources={**resolved.sources, "evaluate.on": grid.COMMAND_LINE})
