"""The memory of a run, measured in a process of its own: `python -m simulations.bench.memory PLAN` (JSON)."""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedkd import rounds
from fedkd.config import RunConfig
from fedkd.configuration import compose
from fedkd.engine import Engine
from fedkd.experiment import Experiment
from fedkd.training.site import LocalSite
from simulations import assemble
from simulations.bench import measures
from simulations.engines import ray_actor
from simulations.engines.inline import Inline
from simulations.system import machine, subprocesses

TIMEOUT = 600.0  # seconds
SAMPLES = 32  # training images per client, 8 for testing; a small data set is reused


@dataclass(frozen=True)
class MemoryTask:
    """What to run, with few steps: memory does not depend on how long a client trains."""

    overrides: list[str]
    clients: int
    per_round: int
    rounds: int
    workers: int  # 0: in the driver itself


def in_child(plan: MemoryTask) -> dict[str, Any]:
    """Measure in a fresh process. Raises EngineError if that fails."""
    found: dict[str, Any] = json.loads(
        subprocesses.python("-m", "simulations.bench.memory", json.dumps(asdict(plan)), timeout=TIMEOUT)
    )
    return found


def measure(plan: MemoryTask) -> dict[str, Any]:
    """Resident and private memory (bytes) of the driver and of each worker, and the bytes of all clients' states."""
    torch.set_num_threads(1)
    experiment, site = crowd(compose.resolve(plan.overrides).config, plan)
    engine: Engine = Inline(site)
    pids: list[int] = []
    if plan.workers:
        pool, _ = measures.start_pool(site, plan.workers)
        engine, pids = pool, pool.pids
    try:
        state = rounds.begin(experiment)
        for _ in range(plan.rounds):
            state = rounds.run_round(experiment, engine, state).state
        return {
            "clients": plan.clients,
            "trained": len(state.clients),
            "state_bytes": ray_actor.num_bytes(dict(state.clients)),
            "driver": of_process("self"),
            "workers": [of_process(pid) for pid in pids],
        }
    finally:
        engine.close()


def crowd(config: RunConfig, plan: MemoryTask) -> tuple[Experiment, LocalSite]:
    """The configuration's problem with `plan.clients` clients of equal size, independent of its partition."""
    made = assemble.assemble(config)
    train = replace(config.train, steps=1)
    few = replace(
        config,
        clients=plan.clients,
        clients_per_round=min(plan.per_round, plan.clients),
        rounds=plan.rounds,
        train=train,
        evaluate=replace(config.evaluate, every=plan.rounds, pooled_every=plan.rounds),
    )
    problem = replace(made.site.problem, clients=plan.clients, rounds=plan.rounds, train=train, mixture={}, assigned=())
    site = replace(
        made.site,
        problem=problem,
        train_index=_deal(plan.clients, SAMPLES, len(made.site.train)),
        test_index=_deal(plan.clients, SAMPLES // 4, len(made.site.test)),
    )
    experiment = replace(made.experiment, config=few, problem=problem, label_distributions=None)
    tests = (SAMPLES // 4,) * plan.clients
    return replace(experiment, sizes=(SAMPLES,) * plan.clients, num_tests=tests), site


def of_process(pid: int | str) -> dict[str, int]:
    """Bytes of a process: `resident` (with shared memory) and `private`. Without /proc only this process's peak."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return {"resident": machine.peak()}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return {
        name: int(lines[key].split()[0]) * 1024 for name, key in {"resident": "VmRSS", "private": "RssAnon"}.items()
    }


def _deal(clients: int, each: int, available: int) -> dict[int, torch.Tensor]:
    return {k: torch.arange(k * each, (k + 1) * each) % available for k in range(clients)}


if __name__ == "__main__":
    print(json.dumps(measure(MemoryTask(**json.loads(sys.argv[1])))))
