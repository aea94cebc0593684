"""The same configuration gives the same ledger in one process and with two Ray workers."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedkd.configuration import compose
from fedkd.engine import Engine, Job, Result
from fedkd.training.site import LocalSite
from simulations.engines.ray_pool import RayPool
from simulations.run import runs
from simulations.run.driver import ExecutionTarget
from simulations.run.options import Options

WORDS = ("rounds=3", "clients=6", "clients_per_round=5", "train.steps=4", "strategy.generator_steps=5", "engine=inline")


class Lent(Engine):
    """A pool that outlives the run it is lent to."""

    name = "ray"

    def __init__(self, pool: RayPool, site: LocalSite) -> None:
        self.pool = pool
        pool.serve(site)

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        return self.pool.run(jobs, deadline)

    def facts(self) -> Mapping[str, Any]:
        return self.pool.facts()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def ledger(folder: Path, name: str, seed: int, **rest: Any) -> tuple[bytes, bytes]:
    resolved = compose.resolve([*WORDS, f"seed={seed}"])
    found = runs.start(resolved, runs=folder, name=name, options=Options(quiet=True), **rest)
    place = Path(found["run"])
    return (place / "metrics.jsonl").read_bytes(), (place / "clients.jsonl").read_bytes()


@cache
def inline(folder: Path, seed: int) -> tuple[bytes, bytes]:
    return ledger(folder, f"inline-{seed}", seed)


def test_two_workers_write_the_ledger_of_one_process(folder: Path, tmp_path: Path, two_workers: RayPool) -> None:
    found = ledger(tmp_path, "ray", 1, target=ExecutionTarget(connect=lambda site, notify: Lent(two_workers, site)))
    assert found == inline(folder, 1)


def test_another_seed_is_another_ledger(folder: Path) -> None:
    assert inline(folder, 1) != inline(folder, 2)
