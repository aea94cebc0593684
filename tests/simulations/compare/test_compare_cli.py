"""`fedkd compare` from the command line: one verdict whatever happened on the way there."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedkd import strict_yaml
from fedkd.errors import FolderError
from simulations import report
from simulations.analysis import plan
from simulations.cli import main
from simulations.compare import cell_process, cell_processes
from simulations.compare.cell_process import CellResult
from simulations.run import run_folder

ROOT = Path(main.__file__).parents[2]
TINY = ["data=digits", "clients=2", "rounds=2", "train.steps=1", "students=mlp", "checkpoint.every=1"]
GRID = [*TINY, "strategy=fedavg,fedprox", "seed=1..2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plainly(monkeypatch):
    """Without the pages of the report, which take seconds and have tests of their own."""
    monkeypatch.setattr(report, "write", lambda verdict, folder: [folder / "report.html"])


@pytest.fixture
def here(plainly, monkeypatch):
    """Cells in this process, one after the other. What becomes of their ends is the same: test_cell_processes.py."""
    monkeypatch.setattr(cell_processes, "warm_up", lambda: None)
    monkeypatch.setattr(
        cell_processes, "run", lambda cells, folder, jobs, board: cell_processes.run_here(cells, folder, board)
    )


def compare(*args, code=0, capsys=None):
    assert main.main(["compare", *args]) == code
    return capsys.readouterr() if capsys else None


def ledgers(folder):
    """The bytes of each cell's ledger, by its place in the grid."""
    found = plan.load(folder)
    return {(c.setting, c.method, c.seed): (folder / c.folder / "metrics.jsonl").read_bytes() for c in found.cells}


def test_a_comparison_is_played_judged_and_reported_and_nothing_is_played_twice(capsys, tmp_path, monkeypatch):
    out = compare(*GRID, "--jobs", "2", capsys=capsys).out
    folder = next(tmp_path.glob("runs/compare-*"))
    assert out.count("\ndone    ") >= 5
    assert "6 seeds" in out
    assert f"report  {folder.relative_to(tmp_path)}/report.html" in out
    assert (folder / "report.html").stat().st_size > 1000
    before = ledgers(folder)
    monkeypatch.setattr(report, "write", lambda verdict, folder: [folder / "report.html"])
    monkeypatch.setattr(cell_processes, "_start", lambda *args: pytest.fail("played again"))
    found = json.loads(compare(*GRID, "--json", capsys=capsys).out)
    assert found["comparison"] == str(folder.relative_to(tmp_path))
    assert (found["status"], found["cells"], found["done"], found["failed"]) == ("done", 4, 4, [])
    assert found["report"].endswith("report.html")
    assert found["verdict"]
    assert ledgers(folder) == before


def test_more_seeds_another_metric_and_baseline_only_add(here, tmp_path, monkeypatch):
    compare(*GRID, "--name", "skew", "--quiet")
    begun = []
    start = cell_process.run
    monkeypatch.setattr(
        cell_process, "run", lambda resolved, *rest: (begun.append(resolved), start(resolved, *rest))[1]
    )
    compare(
        *GRID[:-1], "seed=1..3", "--name", "skew", "--quiet", "--metric", "clients.mean last", "--baseline", "fedprox"
    )
    assert [resolved.config.seed for resolved in begun] == [3, 3]
    found = plan.load(tmp_path / "runs/skew")
    assert (found.seeds, found.metric, found.baseline) == ((1, 2, 3), "clients.mean last", "fedprox")


def test_a_failing_cell_shows_and_the_rest_counts(here, capsys, tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text(
        f"base: {' '.join(TINY)} quorum=2\nsettings: {{even: partition=iid}}\n"
        "methods: {good: strategy=fedavg, bad: strategy=fedavg train.lr=1e30}\nseeds: [1, 2]\n"
    )
    shown = compare(f"comparison={path}", "--name", "x", "--json", code=4, capsys=capsys)
    found = json.loads(shown.out)
    assert (found["status"], found["cells"], found["done"]) == ("failed", 4, 2)
    assert found["failed"][0].startswith("bad, even, seed 1: ")
    assert "only 2 of 4 runs" in shown.err
    _, members = plan.read(tmp_path / "runs/x")
    assert [member.is_done for member in members] == [True, False, True, False]
    assert all("round 1" in member.reason for member in members if not member.is_done)


def test_when_all_cells_fail_it_is_said(here, capsys):
    shown = compare(*TINY, "strategy=fedavg,fedprox", "seed=1", "train.lr=1e30", "quorum=2", code=4, capsys=capsys)
    assert "error  comparison: none of 2 runs are done; fedavg, seed 1: " in shown.err
    assert "Lower train.lr (= 1e+30)" in shown.err  # the same command would only meet the same
    assert "the same command goes on" not in shown.err


def test_data_that_cannot_be_read_fail_every_cell_and_say_why(here, capsys, tmp_path):
    words = ["data=mnist", f"data.root={tmp_path}", "rounds=1", "strategy=fedavg,fedprox", "seed=1"]
    shown = compare(*words, "--name", "x", "--quiet", code=4, capsys=capsys)
    assert "none of 2 runs" in shown.err
    _, members = plan.read(tmp_path / "runs/x")
    assert "data" in members[0].reason
    assert members[0].state == "failed"


def test_a_full_disk_is_code_5_and_nothing_is_lost(capsys, monkeypatch, tmp_path):
    full = CellResult("failed", 5, "run folder: the disk is full (runs)")
    monkeypatch.setattr(cell_processes, "run", lambda cells, *rest: {cell.folder: full for cell in cells})
    assert "same command" in compare(*GRID, "--name", "x", code=5, capsys=capsys).err
    assert plan.load(tmp_path / "runs/x")


def test_a_report_that_cannot_be_written_is_code_5(here, monkeypatch, capsys):
    def write(verdict, folder):
        raise FolderError("the disk is full", where=str(folder))

    monkeypatch.setattr(report, "write", write)
    assert "the disk is full" in compare(*GRID, "--quiet", code=5, capsys=capsys).err


def test_two_commands_do_not_share_a_folder_at_once(capsys, tmp_path):
    held = run_folder.hold(tmp_path / "runs/x")
    assert "is in use by process" in compare(*GRID, "--name", "x", code=5, capsys=capsys).err
    held.release()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["strategy=fedavg,nix"], "did you mean|must be one of"),
        ([*GRID, "--jobs", "0"], "jobs 0 is below 1"),
        ([*GRID, "--name", "../x"], "is not a folder name"),
        ([*GRID, "--tune", "train.lr=0.1"], "train.lr has only one value"),
        ([*GRID, "--tune", "train.steps=1,2"], "train.steps is both set and tuned"),
        ([*GRID, "--tune", "partition.alpha=1,2"], "cannot be tuned"),
        ([*GRID, "--tune", "lr=1,-1"], "train.lr = -1"),
        ([*GRID, "--tune", "lr=1,2", "--tune-seeds", "3"], "--tune-seeds 3 of 2 seeds"),
        ([*GRID, "--metric", "global nix"], "has no rule"),
        ([*GRID, "--baseline", "nix"], "is not among the methods"),
    ],
)
def test_a_mistake_is_code_2_and_leaves_nothing(args, says, capsys, tmp_path):
    assert re.search(says, compare(*args, code=2, capsys=capsys).err)
    assert not list(tmp_path.iterdir())


def test_another_grid_does_not_get_into_the_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cell_processes, "run", lambda cells, *rest: {})
    monkeypatch.setattr(report, "write", lambda verdict, folder: [folder / "report.html"])
    compare(*GRID, "--name", "x", "--quiet", code=4)
    text = (tmp_path / "runs/x/plan.yaml").read_text()
    says = compare(*GRID, "train.batch=9", "--name", "x", code=2, capsys=capsys).err
    assert "train.batch=9" in says
    assert (tmp_path / "runs/x/plan.yaml").read_text() == text


def test_a_dry_run_tells_the_plan_and_leaves_nothing(capsys, tmp_path):
    out = compare(*GRID, "--dry-run", "--tune", "lr=0.1,0.2", capsys=capsys).out
    assert "1 setting x 2 methods x 2 seeds = 4 runs" in out
    assert "methods   fedavg (baseline), fedprox" in out
    assert "train.lr=0.1; train.lr=0.2: on validation data, seeds 1, 4 runs" in out
    assert "time      about " in out
    assert "6 seeds are needed" in out
    assert not list(tmp_path.iterdir())


def test_a_comparison_may_be_on_validation_data_itself_and_be_tuned_besides(here, capsys):
    out = compare(*TINY, "strategy=fedavg", "train.lr=0.1,0.2", "seed=1", "evaluate.on=validation", capsys=capsys).out
    assert "2 of 2 runs" in out
    out = compare(*GRID, "evaluate.on=validation", "--tune", "lr=0.1,0.2", "--dry-run", capsys=capsys).out
    assert "on validation data, seeds 1, 4 runs" in out


def test_a_value_is_chosen_for_each_method_on_validation_data_and_recorded(here, tmp_path):
    args = [*TINY, "strategy=fedavg,fedprox", "seed=1", "--tune", "lr=1e-9,0.3", "--name", "x", "--quiet"]
    compare(*args)
    folder = tmp_path / "runs/x"
    found = plan.load(folder)
    tried = [["train.lr=1e-9"], ["train.lr=0.3"]]
    assert found.tuning["candidates"] == {"fedavg": tried, "fedprox": tried}
    assert (found.tuning["seeds"], found.tuning["metric"]) == ([1], "global last10")
    assert [(row["method"], row["chosen"]) for row in found.tuned] == [
        ("fedavg", ["train.lr=0.3"]),
        ("fedprox", ["train.lr=0.3"]),
    ]
    assert all(len(tried["values"]) == 1 for row in found.tuned for tried in row["tried"])
    trials = [strict_yaml.read((path / "config.yaml").read_text(), "").plain for path in folder.glob("tuning/*")]
    assert [config["evaluate"]["on"] for config in trials] == ["validation"] * 4
    played = [strict_yaml.read((folder / cell.folder / "config.yaml").read_text(), "").plain for cell in found.cells]
    assert [(config["evaluate"]["on"], config["train"]["lr"]) for config in played] == [("test", 0.3)] * 2
    longer = ["seed=0..1" if word.startswith("seed") else word for word in args]
    compare(*longer)  # a choice that was made stays: seed 0 was not there
    assert plan.load(folder).tuned == found.tuned
    assert plan.load(folder).seeds == (0, 1)


@pytest.mark.deployment  # every day: test_cell_processes.py kills a cell, and a parent
def test_killed_and_continued_it_ends_with_the_bytes_of_an_undisturbed_one(plainly, tmp_path):
    words = [*TINY[:2], "rounds=12", *TINY[3:], "strategy=fedavg,fedprox", "seed=1"]
    kill_after(14, [*words, "--name", "killed", "--jobs", "2", "--quiet"], tmp_path / "runs/killed/runs")
    compare(*words, "--name", "killed", "--quiet")
    compare(*words, "--name", "whole", "--quiet")
    assert ledgers(tmp_path / "runs/killed") == ledgers(tmp_path / "runs/whole")
    assert all(text.count(b"\n") == 12 for text in ledgers(tmp_path / "runs/whole").values())


def kill_after(rows, args, below):
    """Start a comparison in a process group of its own; kill the whole group once so many rounds are recorded."""
    with running(args) as process:
        wait_for(lambda: sum(p.read_bytes().count(b"\n") for p in below.glob("*/metrics.jsonl")) >= rows, process)
        os.killpg(process.pid, signal.SIGKILL)


def running(args, **rest):
    command = [sys.executable, "-m", "simulations.cli", "compare", *args]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True, **rest)


def wait_for(is_so, process):
    end = time.monotonic() + 200
    while not is_so():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_request_to_terminate_saves_says_how_to_go_on_and_leaves_no_process(tmp_path):
    words = [*TINY[:2], "rounds=4000", *TINY[3:], "strategy=fedavg,fedprox", "seed=1"]
    below = tmp_path / "runs/x/runs"
    args = [*words, "--name", "x", "--jobs", "2"]  # else a busy machine plays one run after the other
    with running(args, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: len([p for p in below.glob("*/metrics.jsonl") if p.stat().st_size]) == 2, process)
        process.send_signal(signal.SIGTERM)
        says = process.stderr.read()
        assert process.wait(timeout=100) == 143
    assert f"the same command continues: fedkd compare {' '.join(words)} --name x" in says
    assert [run_folder.info(path)["state"] for path in below.iterdir()] == ["stopped", "stopped"]
    end = time.monotonic() + 30
    while living(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def living(group):
    """The processes of a group that are more than a number that nobody has asked for yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            found += [path.parent.name] if int(its_group) == group and state != "Z" else []
    return found
