"""CONTRIBUTING's worked example, followed to the letter in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = {
    "fedavgm": "strategies/fedavgm.py",
    "fedavgm.yaml": "conf/strategy/fedavgm.yaml",
    "test_fedavgm": "tests/strategies/test_fedavgm.py",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with the three files of the example added."""
    place = tmp_path_factory.mktemp("tree")
    for name in ("fedkd", "strategies", "clients", "simulations", "conf"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "tests" / "strategies").mkdir(parents=True)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = dict(re.findall(r"<!-- tested: (\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL))
    assert blocks.keys() == PLACES.keys()
    for name, path in PLACES.items():
        assert not (ROOT / path).exists(), "the example must touch no existing file"
        (place / path).write_text(blocks[name])
    return place


def run(tree: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fedkd(tree: Path, *words: str) -> str:
    return run(tree, "-m", "simulations.cli", *words)


def test_the_examples_own_test_passes(tree: Path) -> None:
    assert "1 passed" in run(tree, "-m", "pytest", "-p", "no:cacheprovider", "tests/strategies/test_fedavgm.py")


def test_it_is_listed_with_its_line(tree: Path) -> None:
    assert "FedAvgM: FedAvg with momentum at the server" in fedkd(tree, "list", "strategies")


def test_it_runs_and_its_momentum_can_be_set(tree: Path) -> None:
    words = ("strategy=fedavgm", "strategy.momentum=0.7", "rounds=2", "train.steps=2", "engine=inline", "--json")
    assert '"status": "done"' in fedkd(tree, "run", *words)


def test_a_momentum_out_of_range_is_refused(tree: Path) -> None:
    with pytest.raises(AssertionError, match=r"strategy\.momentum"):
        fedkd(tree, "run", "strategy=fedavgm", "strategy.momentum=2")
