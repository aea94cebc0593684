"""The smallest whole run: its words, and how tests start and resume it."""

from pathlib import Path
from typing import Any

from fedkd.configuration import compose
from simulations.run import runs
from simulations.run.options import Options

SMALL = (
    "data=digits",
    "students=mlp",
    "partition.alpha=1",
    "clients=4",
    "train.steps=2",
    "evaluate.probe=8",
    "strategy=fedavg",
    "rounds=4",
    "checkpoint.every=2",
    "engine=inline",
)
QUIET = Options(quiet=True)


def start(place: Path, *words: str, name: str = "pilot", **more: Any) -> dict[str, Any]:
    """The summary of a small run below `place`, changed by more words."""
    return runs.start(compose.resolve([*SMALL, *words]), runs=place, name=name, options=QUIET, **more)


def resume(place: Path, path: Path | None = None, **more: Any) -> dict[str, Any]:
    """The summary after a resume of `path`; None: of the newest run below `place`."""
    return runs.resume(path, runs=place, options=QUIET, **more)
