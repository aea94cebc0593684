"""`fedkd bench`: how fast this machine runs rounds, as ratios within one run. docs/benchmark.md lists the measures."""

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedkd.config import RunConfig
from fedkd.configuration import compose, naming, reference
from fedkd.configuration.resolved import Resolved
from fedkd.errors import EngineError
from simulations.analysis.cells import Grid
from simulations.bench import costs, tables
from simulations.engines import ray_session
from simulations.run.options import Options

PER_ROUND = 50  # clients per round where memory is measured
BARE_LIMIT = 1.15  # at most: inline over the bare loop, per round
SPEEDUP_LIMIT = 1.6  # at least: inline over two workers, with two cores free
MESSAGE_LIMIT = 1e-3  # seconds, at most: a client that does nothing, 10,000 parameters


@dataclass(frozen=True)
class Effort:
    """The amount of measurement; all fields except `clients` and `workers` are repetitions."""

    rounds: int = 15
    turns: int = 8  # rounds of each of several methods
    ray_rounds: int = 8
    exchanges: int = 10
    starts: int = 3
    memory_rounds: int = 20
    clients: tuple[int, ...] = (100, 1000)  # for memory
    workers: tuple[int, ...] = (1, 2)


QUICK = Effort(rounds=3, turns=3, ray_rounds=2, exchanges=2, starts=1, memory_rounds=2)


def main(options: Options, overrides: Sequence[str], effort: Effort | None = None) -> int:
    """Measure, and print tables or one JSON object. Raises FedkdError for a configuration that cannot run.

    If the overrides name several methods, as for `fedkd compare`, it measures a round of each.
    """
    effort = effort or Effort()

    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    if costs.has_several(overrides):
        results, show = measure_several(costs.check(overrides), effort, say), tables.show_costs
    else:
        # Resolved before torch is imported: mistakes are reported at once.
        results, show = measure(compose.resolve(overrides), overrides, effort, say), tables.show
    options.answer(results)
    if not options.json:
        show(results)
    return 0


def measure_several(grid: Grid, effort: Effort, say: Callable[[str], None]) -> dict[str, Any]:
    """The cost of a round of each method, and the machine."""
    machine = _machine()
    say("importing torch")
    import torch

    torch.set_num_threads(1)
    shapes = {
        setting: _configuration(grid.configuration((setting, grid.baseline), grid.seeds[0]), ())
        for setting in grid.settings
    }
    notes = without_images({method: grid.resolved[setting, method].config for setting, method in grid.overrides})
    return {"machine": machine, "notes": notes, "settings": shapes, **costs.measure(grid, effort.turns, say)}


def measure(resolved: Resolved, overrides: Sequence[str], effort: Effort, say: Callable[[str], None]) -> dict[str, Any]:
    """All measurements, in seconds and bytes; `missing` holds the reason for each part that failed."""
    machine, configuration = _machine(), _configuration(resolved, overrides)
    results: dict[str, Any] = {"machine": machine, "configuration": configuration, "missing": {}}
    results["notes"] = without_images({naming.of(resolved.config.strategy): resolved.config})
    say("importing torch")
    import torch

    from simulations.bench import measures, memory

    torch.set_num_threads(1)
    say("starting: new processes")
    results["starting"] = measures.starting(effort.starts)
    assembly = measures.assembled(resolved.config, max(effort.rounds, effort.ray_rounds))
    say(f"loop: {effort.rounds} rounds of the bare loop and of inline, in turns")
    results["loop"] = measures.against_bare(assembly, effort.rounds)
    results["message"] = measures.inline_message_seconds(effort.exchanges)
    results["ray"], results["memory"] = [], []
    for workers in effort.workers:
        say(f"ray x {workers}: {effort.ray_rounds} rounds of ray and of inline, in turns")
        _try(results, "ray", partial(measures.on_ray, assembly, effort.ray_rounds, workers, effort.exchanges))
    pool = max(effort.workers, default=0) if results["ray"] else 0
    for clients in effort.clients:
        say(f"memory: {clients} clients")
        task = memory.MemoryTask(list(overrides), clients, PER_ROUND, effort.memory_rounds, pool)
        _try(results, "memory", partial(memory.in_child, task))
    return {**results, "goals": goals(results)}


def without_images(configs: Mapping[str, RunConfig]) -> list[str]:
    """A note per method that can use a public set and has none: it then does other, more expensive work."""
    return [
        f"{method} has no public set of samples, so its server generates them; the measurement includes this work. "
        "To measure with a public set: add proxy=held-out"
        for method, config in configs.items()
        if config.proxy.name == "none" and reference.traits(config.strategy["name"]).get("proxy") == "optional"
    ]


def goals(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Our goals and the measured values; omits goals without a measurement."""
    loop, ray = results["loop"], {row["workers"]: row for row in results["ray"]}
    ratio = loop["phases"]["total"]["ratio"]
    listed = [("inline / bare loop, per round", ratio, "at most", BARE_LIMIT)] if loop["is_same"] else []
    if 2 in ray:
        listed.append(("inline / ray x 2, per round", ray[2]["speedup"], "at least", SPEEDUP_LIMIT))
    listed.append(("idle client inline, s", results["message"], "at most", MESSAGE_LIMIT))
    if 2 in ray:
        listed.append(("idle client on ray x 2, s", ray[2]["message"], "at most", MESSAGE_LIMIT))
    return [
        {"what": goal, "value": value, "limit": limit, "is_met": value <= limit if how == "at most" else value >= limit}
        for goal, value, how, limit in listed
    ]


def _try(results: dict[str, Any], part: str, attempt: Callable[[], dict[str, Any]]) -> None:
    """Record a failure under `missing`: without Ray or enough memory, the other measurements still count."""
    try:
        results[part].append(attempt())
    except EngineError as error:
        results["missing"][part] = error.what


def _machine() -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": ray_session.num_cores(),
        "load": load,  # of the last minute before the measurements
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _configuration(resolved: Resolved, overrides: Sequence[str]) -> dict[str, Any]:
    config = resolved.config
    return {
        "words": list(overrides),
        "strategy": naming.of(config.strategy),
        "data": config.data.name,
        "students": " + ".join(config.students.mix or [config.students.name]),
        "clients": config.clients,
        "per_round": config.clients_per_round or config.clients,
        "steps": config.train.steps,
        "batch": config.train.batch,
    }
