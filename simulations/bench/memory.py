"""The memory of a run, measured in a process of its own: `python -m simulations.bench.memory TASK` (JSON)."""

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
    """The run to measure; it takes few steps, because memory does not depend on how long a client trains."""

    overrides: list[str]
    clients: int
    per_round: int
    rounds: int
    workers: int  # 0: in the driver itself


def in_child(task: MemoryTask) -> dict[str, Any]:
    """Measure in a fresh process. Raises EngineError if that fails."""
    printed = subprocesses.python("-m", "simulations.bench.memory", json.dumps(asdict(task)), timeout=TIMEOUT)
    measured: dict[str, Any] = json.loads(printed)
    return measured


def measure(task: MemoryTask) -> dict[str, Any]:
    """Resident and private memory (bytes) of the driver and of each worker, and the bytes of all clients' states."""
    torch.set_num_threads(1)
    experiment, site = crowd(compose.resolve(task.overrides).config, task)
    engine: Engine = Inline(site)
    pids: list[int] = []
    if task.workers:
        pool, _ = measures.start_pool(site, task.workers)
        engine, pids = pool, pool.pids
    try:
        state = rounds.begin(experiment)
        for _ in range(task.rounds):
            state = rounds.run_round(experiment, engine, state).state
        return {
            "clients": task.clients,
            "trained": len(state.clients),
            "state_bytes": ray_actor.num_bytes(dict(state.clients)),
            "driver": of_process("self"),
            "workers": [of_process(pid) for pid in pids],
        }
    finally:
        engine.close()


def crowd(config: RunConfig, task: MemoryTask) -> tuple[Experiment, LocalSite]:
    """The configuration's problem with `task.clients` clients of equal size, independent of its partition."""
    made = assemble.assemble(config)
    train = replace(config.train, steps=1)
    few = replace(
        config,
        clients=task.clients,
        clients_per_round=min(task.per_round, task.clients),
        rounds=task.rounds,
        train=train,
        evaluate=replace(config.evaluate, every=task.rounds, pooled_every=task.rounds),
    )
    problem = replace(made.site.problem, clients=task.clients, rounds=task.rounds, train=train, mixture={}, assigned=())
    site = replace(
        made.site,
        problem=problem,
        train_index=_deal(task.clients, SAMPLES, len(made.site.train)),
        test_index=_deal(task.clients, SAMPLES // 4, len(made.site.test)),
    )
    experiment = replace(made.experiment, config=few, problem=problem, label_distributions=None)
    tests = (SAMPLES // 4,) * task.clients
    return replace(experiment, sizes=(SAMPLES,) * task.clients, num_tests=tests), site


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
