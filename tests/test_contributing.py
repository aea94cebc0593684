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
    return done.stdout + done.stderr


def test_it_is_listed_with_its_line(tree: Path) -> None:
    listed = run(tree, "-m", "simulations.cli", "list", "strategies")
    assert "FedAvgM: FedAvg with momentum at the server" in listed


def test_its_own_test_passes_it_runs_and_its_momentum_can_be_set_within_its_range(tree: Path) -> None:
    """In one process, which imports torch once."""
    words = ["run", "strategy=fedavgm", "rounds=2", "train.steps=2", "engine=inline", "--json"]
    code = f"""
import sys
import pytest
from simulations import cli
assert cli.main({[*words, "strategy.momentum=2"]}) == 2
assert cli.main({[*words, "strategy.momentum=0.7"]}) == 0
sys.exit(pytest.main(["-p", "no:cacheprovider", "tests/strategies/test_fedavgm.py"]))
"""
    told = run(tree, "-c", code)
    assert "strategy.momentum = 2" in told
    assert '"status": "done"' in told
    assert "1 passed" in told
