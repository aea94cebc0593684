"""CONTRIBUTING's worked examples, followed to the letter in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = {
    "fednova": "strategies/fednova.py",
    "fednova-client": "clients/fednova.py",
    "fednova.yaml": "conf/strategy/fednova.yaml",
    "test_fednova": "tests/strategies/test_fednova.py",
    "pfedme": "clients/pfedme.py",
    "pfedme.yaml": "conf/strategy/pfedme.yaml",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with the files of the examples added."""
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


def test_they_are_listed_with_their_lines(tree: Path) -> None:
    listed = " ".join(run(tree, "-m", "simulations.cli", "list", "strategies").split())
    assert "FedNova: FedAvg that divides updates by the number of steps" in listed
    assert "pFedMe: personal students near weights that move towards them" in listed


def test_the_examples_own_test_passes_both_run_and_a_value_out_of_range_is_refused(tree: Path) -> None:
    """In one process, which imports torch once."""
    small = ["rounds=2", "engine=inline", "--json"]
    code = f"""
import sys
import pytest
from simulations.cli import main as cli
assert cli.main({["run", "strategy=fednova", "train.steps=null", *small]}) == 0
assert cli.main({["run", "strategy=pfedme", "strategy.pull=-1", *small]}) == 2
assert cli.main({["run", "strategy=pfedme", "strategy.pull=5", "train.steps=2", *small]}) == 0
sys.exit(pytest.main(["-p", "no:cacheprovider", "tests/strategies/test_fednova.py"]))
"""
    told = run(tree, "-c", code)
    assert "strategy.pull = -1" in told
    assert told.count('"status": "done"') == 2
    assert "1 passed" in told
