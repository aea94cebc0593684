"""Cells in processes of their own: side by side, reused, gone on with, begun again, and none stops another."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import spawn
from pathlib import Path

import pytest

from fedkd.configuration import compose
from simulations.analysis import grid, plan
from simulations.compare import cell_process, cell_processes
from simulations.compare.cell_process import CellResult
from simulations.compare.progress_table import Progress, ProgressDisplay
from simulations.run import run_folder, runs
from simulations.run.options import Options

WORDS = ("data=digits", "clients=2", "rounds=2", "train.steps=1", "students=mlp", "checkpoint.every=1")
ROOT = Path(cell_process.__file__).parents[2]
QUIET = Options(quiet=True)


def cell(strategy="fedavg", *words, seed=1):
    its = (*WORDS, f"strategy={strategy}", *words)
    digest = compose.resolve([*its, f"seed={seed}"]).digest()
    return plan.Cell("", strategy, seed, its, digest, f"runs/{strategy}-s{seed}-{digest[:8]}")


def resolved(one):
    return compose.resolve(grid.run_overrides(one.overrides, one.seed))


def play_child(one, folder):
    return cell_process.run(resolved(one), folder, ["fedkd", "run", *one.overrides])


def play(its, folder, jobs=2, board=None):
    folder.mkdir(exist_ok=True)
    board = board or ProgressDisplay()
    board.begin("test", [Progress(each, folder / each.folder / "metrics.jsonl", 2) for each in its], jobs)
    cell_processes.warm_up()
    return cell_processes.run({each: resolved(each) for each in its}, folder, jobs, board)


def played_here(one, folder):
    """The same run in this process, undisturbed."""
    return runs.start(resolved(one), runs=folder, name=one.folder.replace("/", "-"), options=QUIET)["run"]


def test_cells_are_ordinary_runs_with_the_bytes_of_ordinary_runs(tmp_path):
    its = [cell(), cell("fedprox")]
    found = play(its, tmp_path / "c")
    assert found == {each.folder: CellResult("done") for each in its}
    for each in its:
        path = tmp_path / "c" / each.folder
        assert plan.is_done(path, each.digest)
        assert not plan.is_done(path, "another")
        alone = played_here(each, tmp_path / "alone")
        for name in ("metrics.jsonl", "clients.jsonl"):
            assert (path / name).read_bytes() == (tmp_path / "alone" / os.path.basename(alone) / name).read_bytes()
        assert run_folder.info(path)["command"][:3] == ["fedkd", "run", "data=digits"]
        assert run_folder.info(path)["arithmetic"]["threads"] == 1


def test_two_runs_are_played_at_once(tmp_path):
    its = [cell("fedavg", "rounds=40", seed=seed) for seed in (1, 2)]
    play(its, tmp_path)
    spans = []
    for each in its:
        events = [json.loads(line) for line in (tmp_path / each.folder / "events.jsonl").read_text().splitlines()]
        spans.append((events[0]["at"], events[-1]["at"]))
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)


def test_a_failing_cell_does_not_stop_the_others_and_says_why(tmp_path):
    bad = cell("fedavg", "train.lr=1e30", "quorum=2")
    its = [bad, cell(), cell("fedprox")]
    found = play(its, tmp_path, jobs=1)
    assert found[bad.folder].status == "failed"
    assert found[bad.folder].code == 4
    assert "round 1" in found[bad.folder].error
    assert [found[each.folder].status for each in its[1:]] == ["done", "done"]


def test_a_process_that_is_killed_is_a_failure_and_its_run_goes_on_later(tmp_path):
    one = cell("fedavg", "rounds=40")
    ledger = tmp_path / one.folder / "metrics.jsonl"
    stopper = threading.Thread(target=kill_when_playing, args=(tmp_path / one.folder, ledger, signal.SIGKILL))
    stopper.start()
    found = play([one], tmp_path)[one.folder]
    stopper.join()
    assert (found.status, found.code) == ("failed", 1)
    assert "SIGKILL" in found.error
    assert run_folder.state(tmp_path / one.folder) == "stopped"
    assert play([one], tmp_path)[one.folder] == CellResult("done")
    alone = played_here(one, tmp_path / "alone")
    assert ledger.read_bytes() == (tmp_path / "alone" / os.path.basename(alone) / "metrics.jsonl").read_bytes()


def kill_when_playing(folder, ledger, number):
    end = time.monotonic() + 120
    while time.monotonic() < end and not (ledger.exists() and ledger.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    os.kill(json.loads((folder / "run.lock").read_text())["pid"], number)


@pytest.mark.parametrize("damage", ["no run.json", "ledger", "checkpoint", "rows lost", "another configuration"])
def test_what_cannot_be_gone_on_with_is_moved_aside_and_played_anew(tmp_path, damage):
    one = cell()
    folder = tmp_path / one.folder
    assert play_child(one, folder) == CellResult("done")
    whole = (folder / "metrics.jsonl").read_bytes()
    spoil(folder, damage)
    assert not plan.is_done(folder, one.digest)
    assert play_child(one, folder) == CellResult("done")
    assert plan.is_done(folder, one.digest)
    assert (folder / "metrics.jsonl").read_bytes() == whole
    assert [path.name for path in tmp_path.glob("runs/*.broken-*")] == [f"{folder.name}.broken-1"]


def spoil(folder, damage):
    info = json.loads((folder / "run.json").read_text())
    if damage == "no run.json":
        (folder / "run.json").unlink()
    elif damage == "ledger":
        (folder / "metrics.jsonl").write_text("{\n" + (folder / "metrics.jsonl").read_text())
        (folder / "run.json").write_text(json.dumps(info | {"state": "stopped"}))
    elif damage == "checkpoint":
        (folder / "run.json").write_text(json.dumps(info | {"state": "stopped"}))
        (folder / "clients.jsonl").write_text("")
    elif damage == "rows lost":
        (folder / "metrics.jsonl").write_text("")
    else:
        (folder / "run.json").write_text(json.dumps(info | {"config": "0" * 64}))


def test_a_folder_in_use_is_waited_for_then_is_a_failure(tmp_path, monkeypatch):
    one = cell()
    assert play_child(one, tmp_path / one.folder) == CellResult("done")
    holder = run_folder.reopen(tmp_path / one.folder)
    monkeypatch.setattr(cell_process, "LOCK_SECONDS", 0.3)
    found = play_child(one, tmp_path / one.folder)
    assert (found.status, found.code) == ("failed", 5)
    assert "is in use by process" in found.error
    monkeypatch.setattr(cell_process, "LOCK_SECONDS", 20.0)
    threading.Timer(0.3, holder.release).start()
    assert play_child(one, tmp_path / one.folder) == CellResult("done")


def test_an_interrupt_lets_the_children_save(tmp_path):
    its = [cell("fedavg", "rounds=3000", seed=seed) for seed in (1, 2, 3)]
    ledger = tmp_path / its[0].folder / "metrics.jsonl"

    class Interrupting(ProgressDisplay):
        def tick(self):
            super().tick()
            if ledger.exists() and ledger.read_bytes().count(b"\n") > 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(its, tmp_path, board=Interrupting())
    info = run_folder.info(tmp_path / its[0].folder)
    assert info["state"] == "stopped"
    assert info["round"] == ledger.read_bytes().count(b"\n")
    assert not (tmp_path / its[2].folder).exists()


PARENT = """
import sys
from pathlib import Path
from fedkd.configuration import compose
from simulations.analysis import grid, plan
from simulations.compare import cell_processes as player
from simulations.compare.progress_table import ProgressDisplay, Progress
folder, board = Path(sys.argv[1]), ProgressDisplay()
one = plan.Cell("", "fedavg", 1, tuple(sys.argv[2:]), "", "runs/one")
board.begin("test", [Progress(one, folder / "metrics.jsonl", 2)], 1)
player.run({one: compose.resolve(grid.run_overrides(one.overrides, 1))}, folder, 1, board)
"""


def test_a_cell_saves_and_stops_when_the_parent_is_killed(tmp_path):
    folder = tmp_path / "runs/one"
    words = [*WORDS, "strategy=fedavg", "rounds=100000", "checkpoint.every=100000"]
    command = [sys.executable, "-c", PARENT, str(tmp_path), *words]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        end = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.kill()
    end = time.monotonic() + cell_process.LOCK_SECONDS
    while run_folder.is_held(folder):
        assert time.monotonic() < end
        time.sleep(0.02)
    info = run_folder.info(folder)
    assert info["state"] == "stopped"
    assert info["round"] == (folder / "metrics.jsonl").read_bytes().count(b"\n") >= 3


def test_a_full_disk_stops_what_has_not_begun(tmp_path, monkeypatch):
    its = [cell(), cell("fedprox"), cell("local")]
    begun = []

    class Full:
        def __init__(self, each):
            self.cell, self.process = each, self
            self.sentinel = os.pipe()[0]

        def is_alive(self):
            return False

        def outcome(self):
            return CellResult("failed", 5, "run folder: the disk is full (somewhere)")

    def start(each, its, folder, running, board):
        begun.append(each)
        running.append(Full(each))

    monkeypatch.setattr(cell_processes, "_start", start)
    monkeypatch.setattr(cell_processes.connection, "wait", lambda *args, **rest: None)
    monkeypatch.setattr(cell_processes, "_stop", lambda running: None)
    found = play(its, tmp_path, jobs=1)
    assert begun == its[:1]
    assert found[its[0].folder].is_disk_full
    assert replace(found[its[0].folder], error="other").is_disk_full is False


def test_debug_plays_in_this_process(tmp_path):
    one = cell()
    board = ProgressDisplay()
    board.begin("test", [Progress(one, tmp_path / one.folder / "metrics.jsonl", 2)], 1)
    assert cell_processes.run_here({one: resolved(one)}, tmp_path, board) == {one.folder: CellResult("done")}
    assert board.cells[one.folder].rounds == 2


def test_a_child_is_not_told_the_script_of_its_parent(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert "init_main_from_path" in spawn.get_preparation_data("cell")
    with cell_processes._without_script():
        assert not {"init_main_from_path", "init_main_from_name"} & spawn.get_preparation_data("cell").keys()
