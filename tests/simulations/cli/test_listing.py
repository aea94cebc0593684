"""Lists: what a strategy says of itself is read from its source, and fits a terminal."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fedkd.configuration import compose, plugins, reference
from simulations.cli import listing, main

KEYS = {"name", "about", "knowledge", "public_set", "across_architectures", "serves", "paper"}


def rows() -> dict[str, listing.Row]:
    return {row["name"]: row for row in listing.of("strategies", Path("runs"))["strategies"]}


def test_every_strategy_has_every_trait():
    found = rows()
    assert set(found) == set(compose.options("strategy"))
    for row in found.values():
        assert set(row) == KEYS
        assert row["public_set"] in {"no", "yes", "optional"}
        assert row["serves"] in {"global", "personal", "both"}
        assert isinstance(row["across_architectures"], bool)
        assert row["paper"]
        assert row["knowledge"]


@pytest.mark.parametrize("name", compose.options("strategy"))
def test_what_is_read_is_what_an_import_would_find(name):
    half = compose.node("strategy", name)["name"]
    strategy, said = plugins.strategy(half), reference.traits(half)
    for attribute in ("knowledge", "proxy", "works_across_students", "serves", "paper"):
        assert said[attribute] == getattr(strategy, attribute)


def test_a_method_that_is_a_client_half_has_the_paper_of_its_line():
    found = rows()
    assert found["fedprox"]["paper"] == "Li et al., MLSys 2020"
    assert found["fedavg"]["paper"] == "McMahan et al., AISTATS 2017"


def test_a_half_that_is_not_ours_has_no_traits():
    assert reference.traits("no-such-half") == {}
    row = {"name": "mine", "about": "my own"}
    assert listing.text({"strategies": [row]}).splitlines()[1:] == ["mine  ?           ?       ?       ?", "    my own"]


def test_the_table_fits_80_columns_and_shows_everything(capsys):
    assert main.main(["list", "strategies"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.splitlines()[0].split() == ["name", "public", "set", "across", "serves", "what", "crosses"]
    flat = " ".join(shown.split())
    for row in rows().values():
        assert " ".join(textwrap.dedent(row["about"]).split()) in flat


def test_json_has_the_traits_as_keys(capsys):
    assert main.main(["list", "strategies", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["strategies"]
    assert all(set(row) == KEYS for row in found)


def test_a_list_of_strategies_imports_nothing_heavy():
    code = "import sys; from simulations.cli import main as cli; cli.main(['list', 'strategies']); "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'strategies.fedavg')))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_no_line_cites_twice_or_points_to_a_page_that_is_not_there(capsys):
    assert main.main(["list", "strategies"]) == 0
    assert capsys.readouterr().out.count("2107.00051") == 1
    shown = listing.text(listing.of(None, Path("no-runs")))
    assert ".md " not in shown
    assert "specs/" not in shown
    assert "knfu-mnist " in listing.text(listing.of("comparisons", Path("no-runs")))
