"""Short runs on the digits, shared: playing one takes seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd.configuration import compose
from simulations.run import runs
from simulations.run.options import Options

SHORT = ["data=digits", "clients=4", "rounds=2", "train.steps=15", "engine=inline", "evaluate.probe=0", "train.lr=0.05"]


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs."""
    return tmp_path_factory.mktemp("export") / "runs"


@pytest.fixture(scope="package")
def play(place: Path) -> Callable[..., Path]:
    """Plays a short run once, by name; its folder."""

    def once(name: str, *words: str) -> Path:
        if not (place / name).exists():
            options = Options(quiet=True)
            runs.start(compose.resolve([*SHORT, *words]), runs=place, name=name, options=options)
        return place / name

    return once


@pytest.fixture(scope="package")
def demo(play: Callable[..., Path]) -> Path:
    """FedAvg, a global student; BatchNorm's statistics stay with the clients."""
    return play("demo", "strategy=fedavg", "students.statistics=local")
