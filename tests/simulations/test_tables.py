"""Tables of results: cells are ordinary runs, played once, shared between tables, and summarised by named rules."""

import json
import re

import pytest

from fedkd import compose
from fedkd.errors import ConfigError
from simulations import run_folder, tables

PATHS = ("clients.mean", "forgetting.inside", "server.depth", "bytes.up", "seconds.clients", "common.mean")
TINY = """# two methods on digits
base: data=digits clients=2 rounds=2 train.steps=1 students=mlp checkpoint.every=1
settings:
  even: partition=iid
methods:
  FedAvg: strategy=fedavg
  FedAvg, uniform: strategy=fedavg strategy.weighting=uniform
seeds: [0]
columns:
  last: clients.pooled last
  global: global best
"""


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A folder of comparisons beside the real groups."""
    folder = tmp_path / "conf"
    folder.mkdir()
    for group in compose.CONF.iterdir():
        (folder / group.name).symlink_to(group)
    (folder / "comparison").unlink()
    (folder / "comparison").mkdir()
    (folder / "comparison/tiny.yaml").write_text(TINY)
    monkeypatch.setattr(compose, "CONF", folder)
    return folder / "comparison"


def test_cells_are_the_product_and_named_by_what_decides_their_results(conf, tmp_path):
    cells = tables.load("tiny", tmp_path).cells
    assert [(cell.setting, cell.method, cell.seed) for cell in cells] == [
        ("even", "FedAvg", 0),
        ("even", "FedAvg, uniform", 0),
    ]
    assert len({cell.folder.name for cell in cells}) == 2
    assert cells == tables.load("tiny", tmp_path).cells


@pytest.mark.parametrize(
    ("text", "says"),
    [("base: ''\n", "exactly these keys"), (TINY.replace("pooled last", "pooled newest"), "has no rule")],
)
def test_a_comparison_that_does_not_say_what_it_must_is_refused(conf, tmp_path, text, says):
    (conf / "tiny.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        tables.load("tiny", tmp_path)
    with pytest.raises(ConfigError, match="known: tiny"):
        tables.load("other", tmp_path)


def test_rules_pick_from_the_rounds_that_have_a_value():
    rows = [{"accuracy": {"clients": {"pooled": number / 10}}} for number in range(1, 8)] + [{"accuracy": {}}]
    rules = ("last", "last5", "top5", "best", "median", "sum")
    found = {rule: tables.value(rows, "accuracy.clients.pooled", rule) for rule in rules}
    assert found == pytest.approx({"last": 0.7, "last5": 0.5, "top5": 0.5, "best": 0.7, "median": 0.4, "sum": 2.8})
    assert tables.value(rows, "accuracy.common.mean", "last") is None


def test_figures_are_percentages_megabytes_seconds_or_plain(tmp_path):
    row = {
        "accuracy": {"clients": {"mean": 0.5}},
        "forgetting": {"inside": 0.25},
        "server": {"depth": 3},
        "bytes": {"up": {"weights": 10**6, "numbers": 10**6}},
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "timings.jsonl").write_text(json.dumps({"clients": 1.5}) + "\n")
    found = {path: tables.figure(tmp_path, path, "last") for path in PATHS}
    assert found == dict(zip(PATHS, [50, 25, 3, 2, 1.5, None], strict=True))


def test_a_table_is_played_once_and_printed_again_from_what_is_there(conf, tmp_path, capsys, monkeypatch):
    assert tables.main(["tiny", "--runs", str(tmp_path / "runs"), "--jobs", "2"]) == 0
    first = capsys.readouterr()
    assert first.err.count("done ") == 2
    assert re.search(r"^\| FedAvg \| \d+\.\d\d \| \d+\.\d\d \| \d+ \|$", first.out, re.M)
    monkeypatch.setattr(tables.subprocess, "run", lambda *args, **kwargs: pytest.fail("played again"))
    assert tables.main(["tiny", "--runs", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out == first.out


def test_a_cell_that_was_not_played_is_missing_from_its_line(conf, tmp_path, capsys):
    assert tables.main(["tiny", "--runs", str(tmp_path), "--only-print"]) == 0
    assert "FedAvg (0 of 1 runs) | - | - |" in capsys.readouterr().out


def test_an_unfinished_cell_goes_on(conf, tmp_path, monkeypatch):
    cell = tables.load("tiny", tmp_path).cells[0]
    cell.folder.mkdir()
    monkeypatch.setattr(run_folder, "state", lambda path: "stopped")
    asked = []

    def run(command, **kwargs):
        asked.append(command)
        return tables.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tables.subprocess, "run", run)
    tables.play(cell)
    assert asked[0][3:5] == ["resume", str(cell.folder)]


def test_comparisons_of_the_repository_are_well_formed(tmp_path):
    for path in sorted((compose.CONF / "comparison").glob("*.yaml")):
        assert path.read_text().startswith("# ")
        assert tables.load(path.stem, tmp_path).cells
