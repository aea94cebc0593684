"""docs/own-code.md: its file is taken from the page and run as the page says."""

import re
import shlex
from pathlib import Path

import pytest

from fedkd import extensions
from simulations.cli import main as cli

PAGE = (Path(__file__).parents[1] / "docs" / "own-code.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^fedkd (.*)$", PAGE, re.MULTILINE)
SMALL = ["rounds=1", "train.steps=2", "engine=inline", "evaluate.probe=4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    monkeypatch.chdir(tmp_path)
    with extensions.kept():
        yield tmp_path


@pytest.mark.parametrize("strategy", ["fedgen", "fedprox", "fedproto", "knfu", "fedfuse", "fedd2s"])
def test_the_file_of_the_page_runs_with_methods_of_every_kind(folder, strategy, capsys):
    words = [word for word in shlex.split(COMMANDS[0]) if not word.startswith(("strategy=", "rounds="))]
    public = ["proxy=held-out", "proxy.size=20"] if strategy in ("knfu", "fedfuse") else []
    assert cli.main([*words, *SMALL, f"strategy={strategy}", *public, "--quiet"]) == 0
    assert "done" in capsys.readouterr().out


def test_without_a_public_set_fedfuse_says_that_it_makes_images(folder, capsys):
    words = [word for word in shlex.split(COMMANDS[0]) if not word.startswith(("strategy=", "rounds="))]
    assert cli.main([*words, *SMALL, "strategy=fedfuse", "--quiet"]) == 2
    assert "fedfuse generates images, and these samples have shape [20]" in capsys.readouterr().err


def test_its_other_commands_know_its_names(folder, capsys):
    compare, listing = COMMANDS[1:3]
    assert cli.main([*shlex.split(compare), "--dry-run"]) == 0
    assert cli.main(shlex.split(listing)) == 0
    assert "my-net" in capsys.readouterr().out
