"""`fedkd compare --dry-run`: lists the missing runs and estimates their time. Writes nothing to disk."""

import heapq
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.config import RunConfig
from fedkd.configuration.resolved import Resolved
from fedkd.errors import RunError
from simulations.analysis import candidates, plan
from simulations.analysis.plan import Cell, ComparisonPlan
from simulations.run.options import Options
from simulations.system.threads import one_thread

_NEVER = 10**9  # rounds


@dataclass(frozen=True)
class Pace:
    """Seconds of the phases of a run on one core."""

    start: float
    round: float  # training and aggregation
    own: float  # an evaluation on the clients' own test splits
    pooled: float  # an evaluation on the pooled test set

    def run(self, config: RunConfig) -> float:
        """Seconds of a whole run."""
        own = math.ceil(config.rounds / config.evaluate.every)  # a run always evaluates its last round
        pooled = math.ceil(config.rounds / config.evaluate.pooled_every)
        return self.start + config.rounds * self.round + own * self.own + pooled * self.pooled


def measure(config: RunConfig) -> Pace:
    """Run three rounds in this process: one to warm up, then one with each evaluation. Raises FedkdError."""
    with one_thread():  # as in a run
        return _measure(config)


def _measure(config: RunConfig) -> Pace:
    from fedkd import rounds
    from simulations import assemble
    from simulations.engines.inline import Inline

    began = time.perf_counter()
    assembly = assemble.assemble(config)
    state = rounds.begin(assembly.experiment)
    start = time.perf_counter() - began
    timings = []
    engine = Inline(assembly.site)
    for every, pooled_every in ((_NEVER, _NEVER), (1, _NEVER), (1, 1)):
        evaluate = replace(config.evaluate, every=every, pooled_every=pooled_every)
        experiment = replace(assembly.experiment, config=replace(config, rounds=_NEVER, evaluate=evaluate))
        result = rounds.run_round(experiment, engine, state)
        state = result.state
        timings.append(result.timings)
    own, both = timings[1]["evaluation"], timings[2]["evaluation"]
    training = sum(phases["total"] - phases["evaluation"] for phases in timings[1:]) / 2
    return Pace(start, training, own, max(0.0, both - own))


def spread(seconds: Iterable[float], jobs: int) -> float:
    """Seconds until all runs are done, if `jobs` of them run side by side."""
    free_at = [0.0] * jobs
    for duration_of_run in seconds:
        heapq.heapreplace(free_at, free_at[0] + duration_of_run)
    return max(free_at)


def show(shown: ComparisonPlan, cells: Mapping[Cell, Resolved], folder: Path, jobs: int, options: Options) -> int:
    """Print the plan and the estimate; `cells` are all cells, done or not."""
    missing = {
        cell: resolved.config for cell, resolved in cells.items() if not plan.is_done(folder / cell.folder, cell.digest)
    }
    seconds = estimate(missing, shown.settings[0], jobs)
    note = seeds_note(shown)
    if options.json:
        facts: dict[str, Any] = {
            key: getattr(shown, key) for key in ("settings", "methods", "seeds", "metric", "baseline")
        }
        counts = {"cells": len(cells), "done": len(cells) - len(missing), "jobs": jobs, "seconds": seconds}
        options.answer({"comparison": str(folder), "status": "planned", **counts, **facts, "note": note})
        return 0
    print("\n".join(_lines(shown, cells, missing, folder)))
    if missing:
        cores = "1 core" if jobs == 1 else f"{jobs} cores"
        print(f"time      {'cannot be estimated' if seconds is None else f'about {duration(seconds)} on {cores}'}")
    if note:
        print(f"note      {note}")
    return 0


def estimate(cells: Mapping[Cell, RunConfig], setting: str, jobs: int) -> float | None:
    """Seconds until all runs are done; None if a method cannot be timed. Measures one cell of each method."""
    paces: dict[str, Pace] = {}
    for cell in sorted(cells, key=lambda cell: cell.setting != setting):
        if cell.method not in paces:
            try:
                paces[cell.method] = measure(cells[cell])
            except RunError:
                return None
    return spread((paces[cell.method].run(config) for cell, config in cells.items()), jobs)


def seeds_note(shown: ComparisonPlan) -> str:
    """A note if too few seeds make significance impossible; empty if they suffice."""
    from simulations.analysis import stats

    family = (len(shown.methods) - 1) * len(shown.settings)
    count = len(shown.seeds)
    if not family or stats.can_reach(count, family):
        return ""
    among = "the comparison with the baseline" if family == 1 else f"{family} comparisons with the baseline"
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    return (
        f"with {seeds} no difference can be significant at p < {stats.LEVEL:g} in {among}, however large; "
        f"{stats.seeds_needed(family)} seeds are needed"
    )


def duration(seconds: float) -> str:
    """`40 s`, `6 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def spans(seeds: Sequence[int]) -> str:
    """`1..3,7`."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(f"{part[0]}..{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _lines(shown: ComparisonPlan, cells: Collection[Cell], missing: Collection[Cell], folder: Path) -> Iterator[str]:
    sizes = [(len(shown.settings), "setting"), (len(shown.methods), "method"), (len(shown.seeds), "seed")]
    product = " x ".join(f"{size} {noun}{'s'[: size > 1]}" for size, noun in sizes)
    done = f", {len(cells) - len(missing)} done before" if len(missing) < len(cells) else ""
    yield f"{folder.name}: {product} = {len(shown.cells)} runs{done}"
    if any(shown.settings):
        yield f"settings  {'; '.join(shown.settings)}"
    yield f"methods   {', '.join(method + ' (baseline)' * (method == shown.baseline) for method in shown.methods)}"
    yield f"seeds     {spans(shown.seeds)}"
    yield f"metric    {shown.metric}"
    if shown.tuning:
        lines = candidates.shown(plan.tried_before(shown))
        data = f"on validation data, seeds {spans(shown.tuning['seeds'])}, {len(cells) - len(shown.cells)} runs"
        yield from (f"tuning    {line}" for line in lines[:-1])
        yield f"tuning    {lines[-1]}{':' if len(lines) == 1 else ';'} {data}"
