"""Devices with data and memory of their own write the ledger of a simulation, byte for byte."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from edges import EdgeGrid

from fedkd.configuration import compose
from simulations.run import runs
from simulations.run.options import Options

SMALL = ("rounds=2", "train.steps=2", "evaluate.probe=8", "evaluate.common=20", "data.min_samples=1")
STRATEGIES = {
    "fedavg": (),
    "fedgen": ("strategy.generator_steps=2",),
    "knfu": ("proxy=held-out", "proxy.size=40"),
    "fedfuse": ("proxy=held-out", "proxy.size=40"),
    "scaffold": (),
    "ditto": (),
    "fedproto": (),
}
if os.environ.get("FEDKD_SMOKE") == "all":
    public = ("proxy=held-out", "proxy.size=40")
    STRATEGIES |= {name: public for name in compose.options("strategy") if name != "centralised"} | STRATEGIES


pytestmark = pytest.mark.usefixtures("in_process")


def simulated(folder: Path, grid: EdgeGrid) -> Path:
    runs.start(grid.resolved, runs=folder, name="run", options=Options(quiet=True))
    return folder / "run"


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_devices_write_the_ledger_of_a_simulation(tmp_path: Path, strategy: str) -> None:
    words = (f"strategy={strategy}", *SMALL, *STRATEGIES[strategy])
    grid = EdgeGrid(tmp_path, words, 3).share()
    grid.play(tmp_path / "deployed")
    wanted = simulated(tmp_path / "simulated", grid)
    found = tmp_path / "deployed" / "run"
    # Accuracy on one's own labels needs everybody's label distribution, which devices do not give away.
    rows = [without(read(folder / "metrics.jsonl"), "local_accuracy") for folder in (found, wanted)]
    assert rows[0] == rows[1]
    assert (found / "clients.jsonl").read_bytes() == (wanted / "clients.jsonl").read_bytes()


def test_students_of_different_architectures(tmp_path: Path) -> None:
    words = ("strategy=knfu", "students=[mlp, lenet5, mlp]", "proxy=held-out", "proxy.size=40", *SMALL)
    grid = EdgeGrid(tmp_path, words, 3).share()
    grid.play(tmp_path / "deployed")
    wanted = simulated(tmp_path / "simulated", grid)
    assert (tmp_path / "deployed/run/clients.jsonl").read_bytes() == (wanted / "clients.jsonl").read_bytes()
