"""Runs as a user meets them: folders, states, exit codes, what is kept when something breaks."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pilots import QUIET, SMALL, resume, start

from fedkd import engine
from fedkd.configuration import compose
from fedkd.errors import CheckpointError, ConfigError, DataError, EngineError, FolderError, RunError
from fedkd.record import checkpoint, ledger
from simulations.cli import main
from simulations.engines import choose
from simulations.engines.inline import Inline
from simulations.run import console_text, run_folder, runs
from simulations.run.options import Options
from simulations.system.interrupts import Stop


class Faulty(Inline):
    """An engine that lets a test meddle with a round: `before(round)` may raise, `change(job, result)` may alter."""

    before = staticmethod(lambda number: None)
    change = staticmethod(lambda job, result: result)

    def run(self, jobs, deadline=None):
        for job, result in zip(jobs, super().run(jobs, deadline), strict=True):
            type(self).before(job.round)
            yield type(self).change(job, result)


@pytest.fixture
def faulty(monkeypatch):
    made = type("Made", (Faulty,), {})
    monkeypatch.setattr(choose, "make", lambda config, site, **_: (made(site), "engine: faulty"))
    return made


def fail(job, result):
    return (
        engine.failure(job, RuntimeError("CUDA out of memory, process 4711 at 0x7f00"))
        if job.task == "train"
        else result
    )


# --- a run that ends well -----------------------------------------------------------------------------------------


def test_a_run_gives_the_summary_of_the_contract(tmp_path):
    found = start(tmp_path)
    assert found["status"] == "done"
    assert found["rounds"] == 4
    assert found["run"] == str(tmp_path / "pilot")
    assert set(found["accuracy"]) == {"last", "last10", "top5", "best"}
    assert set(found["clients"]["pooled"]) == {"last", "last10", "top5", "best"}
    assert 0 <= found["clients"]["worst_decile"] <= found["clients"]["mean"] <= 1
    assert found["bytes"]["up"] == found["bytes"]["down"] > 0
    assert found["seconds"]["total"] > 0
    assert runs.exit_code(found) == 0
    assert json.loads((tmp_path / "pilot" / "summary.json").read_text()) == found


def test_a_run_leaves_the_folder_of_the_contract(tmp_path):
    start(tmp_path)
    place = tmp_path / "pilot"
    names = {path.name for path in place.iterdir()}
    assert {"config.yaml", "run.json", "partition.json", "log.txt", "run.lock", "checkpoints", "tb"} <= names
    assert {"metrics.jsonl", "clients.jsonl", "timings.jsonl", "events.jsonl", "rounds.csv"} <= names
    assert len(ledger.rows(place / "metrics.jsonl")) == 4
    assert len(ledger.rows(place / "clients.jsonl")) == 16
    assert [path.name for path in checkpoint.committed(place / "checkpoints")] == ["round-0002", "round-0004"]
    info = run_folder.info(place)
    assert info["state"] == "done"
    assert info["arithmetic"]["threads"] == 1
    assert info["arithmetic"]["torch"] == torch.__version__
    split = json.loads((place / "partition.json").read_text())
    assert sum(split["train"]) == sum(map(sum, split["labels"]))


def test_the_ledger_of_a_configuration_is_the_same_bytes_again(tmp_path):
    start(tmp_path, name="a")
    start(tmp_path, name="b")
    for name in ("metrics.jsonl", "clients.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_without_name_is_named_by_time_strategy_and_hash(tmp_path):
    resolved = compose.resolve([*SMALL, "rounds=1"])
    first = runs.start(resolved, runs=tmp_path, options=QUIET)
    again = runs.start(resolved, runs=tmp_path, options=QUIET)
    assert Path(first["run"]).name.split("-")[2:] == ["fedavg", resolved.digest()[:4]]
    assert first["run"] != again["run"]


def test_curves_have_every_round_once(tmp_path, faulty):
    faulty.before = staticmethod(stop_in(3))
    start(tmp_path)
    faulty.before = staticmethod(lambda number: None)
    resume(tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "pilot" / "tb")).Reload()
    assert {"accuracy/global", "accuracy/clients_mean", "bytes/up", "bytes/down_weights", "terms/ce"} <= set(
        board.Tags()["scalars"]
    )
    assert [event.step for event in board.Scalars("accuracy/global")] == [1, 2, 3, 4]
    recorded = [row["accuracy"]["global"] for row in ledger.rows(tmp_path / "pilot" / "metrics.jsonl")]
    assert [event.value for event in board.Scalars("accuracy/global")] == pytest.approx(recorded)


def test_the_table_of_rounds_is_that_of_an_unbroken_run(tmp_path, faulty):
    start(tmp_path, name="unbroken")
    faulty.before = staticmethod(stop_in(3))
    start(tmp_path)
    faulty.before = staticmethod(lambda number: None)
    with (tmp_path / "pilot" / "rounds.csv").open("a") as file:
        file.write("3,half a ro")
    resume(tmp_path)
    assert (tmp_path / "pilot" / "rounds.csv").read_bytes() == (tmp_path / "unbroken" / "rounds.csv").read_bytes()
    table = list(csv.DictReader((tmp_path / "pilot" / "rounds.csv").open()))
    recorded = ledger.rows(tmp_path / "pilot" / "metrics.jsonl")
    assert [int(row["round"]) for row in table] == [1, 2, 3, 4]
    assert [float(row["accuracy.global"]) for row in table] == [row["accuracy"]["global"] for row in recorded]
    assert [float(row["terms.ce"]) for row in table] == [row["terms"]["ce"] for row in recorded]


# --- interruptions ------------------------------------------------------------------------------------------------


def stop_in(number):
    def before(playing):
        if playing == number:
            raise Stop

    return before


def test_ctrl_c_saves_the_last_whole_round(tmp_path, faulty):
    faulty.before = staticmethod(stop_in(2))
    found = start(tmp_path)
    assert (found["status"], found["rounds"], runs.exit_code(found)) == ("stopped", 1, 130)
    assert [path.name for path in checkpoint.committed(tmp_path / "pilot" / "checkpoints")] == ["round-0001"]
    assert run_folder.state(tmp_path / "pilot") == "stopped"


def test_resume_without_a_run_takes_the_newest_unfinished_one(tmp_path, faulty):
    start(tmp_path, name="finished")
    faulty.before = staticmethod(stop_in(2))
    start(tmp_path, name="broken")
    faulty.before = staticmethod(lambda number: None)
    assert resume(tmp_path)["run"] == str(tmp_path / "broken")
    with pytest.raises(FolderError, match="no unfinished run"):
        resume(tmp_path)


def test_resuming_a_finished_run_only_says_so(tmp_path):
    done = start(tmp_path)
    before = (tmp_path / "pilot" / "metrics.jsonl").read_bytes()
    found = resume(tmp_path, tmp_path / "pilot")
    assert found["status"] == "done"
    assert found["accuracy"] == done["accuracy"]
    assert (tmp_path / "pilot" / "metrics.jsonl").read_bytes() == before


def test_a_changed_config_is_not_resumed(tmp_path, faulty):
    faulty.before = staticmethod(stop_in(2))
    start(tmp_path)
    path = tmp_path / "pilot" / "config.yaml"
    path.write_text(path.read_text().replace("rounds: 4", "rounds: 5"))
    with pytest.raises(CheckpointError, match="not the configuration"):
        resume(tmp_path)


@pytest.mark.parametrize("rounds", ["5", "many"])
def test_a_changed_config_of_a_finished_run_is_refused(tmp_path, rounds):
    start(tmp_path)
    path = tmp_path / "pilot" / "config.yaml"
    path.write_text(path.read_text().replace("rounds: 4", f"rounds: {rounds}"))
    with pytest.raises(CheckpointError, match="not the configuration that this run began with") as caught:
        resume(tmp_path, tmp_path / "pilot")
    assert caught.value.code == 6
    assert f"fedkd run {path}" in caught.value.mend


def test_a_run_of_another_version_whose_keys_are_gone_names_that_version(tmp_path, capsys):
    start(tmp_path)
    path = tmp_path / "pilot"
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(f"{config}gone: 1\ngone_too: 2\n")
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "deciding_code": "0" * 64, "git": "336498f036e6" + "0" * 28}))
    for verb in ("resume", "export"):
        assert main.main([verb, "pilot", "--runs", str(tmp_path)]) == 6
        shown = capsys.readouterr().err
        assert "began with another version of fedkd" in shown
        assert f"unknown key 'gone' ({path}/config.yaml:" in shown
        assert "and 1 more" in shown
        assert "continue with that version (commit 336498f036e6)" in shown


@pytest.mark.parametrize("place", [["pilot"], []])
def test_a_resume_with_words_says_that_a_run_keeps_its_configuration(tmp_path, faulty, capsys, place):
    faulty.before = staticmethod(stop_in(2))
    start(tmp_path)
    assert main.main(["resume", *place, "train.lr=1", "--runs", str(tmp_path)]) == 6
    shown = capsys.readouterr().err
    assert "a run keeps the configuration that it began with, so it cannot be resumed with train.lr=1" in shown
    assert f"leave train.lr=1 out, or start a new run: fedkd run {tmp_path}/pilot/config.yaml train.lr=1" in shown
    assert main.main(["resume", "pilot", "other", "--runs", str(tmp_path)]) == 2
    assert "'other' is one run too many" in capsys.readouterr().err


def test_a_changed_partition_is_not_resumed(tmp_path, faulty):
    faulty.before = staticmethod(stop_in(2))
    start(tmp_path)
    path = tmp_path / "pilot" / "run.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "partition_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="partition"):
        resume(tmp_path)


def test_other_arithmetic_is_warned_of(tmp_path, faulty, capsys):
    faulty.before = staticmethod(stop_in(2))
    start(tmp_path)
    path = tmp_path / "pilot" / "run.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "arithmetic": {**info["arithmetic"], "threads": 2}}))
    faulty.before = staticmethod(lambda number: None)
    resume(tmp_path)
    assert "threads 2 -> 1" in capsys.readouterr().err


# --- failures -----------------------------------------------------------------------------------------------------


def test_when_all_clients_fail_the_run_ends_with_code_4_and_keeps_its_data(tmp_path, faulty):
    faulty.change = staticmethod(lambda job, result: fail(job, result) if job.round == 4 else result)
    with pytest.raises(RunError, match="only 0 of 4 clients") as caught:
        start(tmp_path)
    place = tmp_path / "pilot"
    assert caught.value.code == 4
    assert f"fedkd resume {place}" in caught.value.message()
    assert run_folder.state(place) == "failed"
    assert len(ledger.rows(place / "metrics.jsonl")) == 3
    assert [path.name for path in checkpoint.committed(place / "checkpoints")] == ["round-0002", "round-0003"]
    assert "CUDA out of memory" in (place / "clients" / "2" / "errors.log").read_text()
    assert json.loads((place / "summary.json").read_text())["status"] == "failed"
    faulty.change = staticmethod(lambda job, result: result)
    assert resume(tmp_path)["rounds"] == 4


def test_one_failing_client_is_recorded_without_machine_facts(tmp_path, faulty):
    faulty.change = staticmethod(lambda job, result: fail(job, result) if job.client == 2 else result)
    found = start(tmp_path)
    rows = [row for row in ledger.rows(tmp_path / "pilot" / "clients.jsonl") if row["client"] == 2]
    assert found["replies"] == {"ok": 12, "late": 0, "failed": 4, "rejected": 0}
    assert {row["state"] for row in rows} == {"failed"}
    assert {row["reason"] for row in rows} == {"RuntimeError"}
    assert "4711" in (tmp_path / "pilot" / "events.jsonl").read_text()


def test_a_student_that_is_not_finite_ends_the_run(tmp_path, faulty):
    def diverge(job, result):
        if job.task == "evaluate_pooled" and job.round == 3:
            return engine.failed(job, "numbers: 'loss_sum' is not finite", "non_finite")
        return result

    faulty.change = staticmethod(diverge)
    with pytest.raises(RunError, match="round 3: training has diverged") as caught:
        start(tmp_path, "strategy=fedgen", "train.lr=20")
    place = tmp_path / "pilot"
    assert len(ledger.rows(place / "metrics.jsonl")) == 2
    advice = caught.value.mend
    assert "resume does not help. Lower train.lr (= 20), or strategy.generator_lr (= 0.0003), or bound" in advice
    assert f"in a new run: fedkd run {place}/config.yaml train.lr=2 train.clip=1" in advice
    assert "fedkd resume" not in "\n".join(
        [advice, *console_text.portrait(runs.show(place, options=Options(json=True)))]
    )
    with pytest.raises(FolderError, match="no unfinished run"):  # it would fail again
        resume(tmp_path)


def test_replies_that_are_all_refused_would_be_refused_again(tmp_path, faulty):
    faulty.change = staticmethod(lambda job, result: engine.failed(job, "counts: 9 is too much", "range"))
    with pytest.raises(RunError, match="only 0 of 4 clients") as caught:
        start(tmp_path)
    assert "The same replies would be refused again, so a resume does not help" in caught.value.mend
    assert json.loads((tmp_path / "pilot" / "run.json").read_text())["replays"] is True
    faulty.change = staticmethod(lambda job, result: result)
    assert resume(tmp_path, tmp_path / "pilot")["status"] == "done"  # a user who names it may have mended the code
    assert json.loads((tmp_path / "pilot" / "run.json").read_text())["replays"] is None


def test_a_bug_in_an_algorithm_keeps_the_rounds_before_it(tmp_path, faulty):
    def explode(number):
        if number == 4:
            raise ZeroDivisionError("a bug")

    faulty.before = staticmethod(explode)
    with pytest.raises(ZeroDivisionError):
        start(tmp_path)
    assert run_folder.state(tmp_path / "pilot") == "failed"
    assert "ZeroDivisionError: a bug" in (tmp_path / "pilot" / "log.txt").read_text()
    assert [path.name for path in checkpoint.committed(tmp_path / "pilot" / "checkpoints")][-1] == "round-0003"


def test_an_engine_that_dies_ends_the_run_with_an_event_and_a_resume_gives_the_same_bytes(tmp_path, faulty):
    whole = start(tmp_path, name="whole")

    def die(number):
        if number == 3:
            raise EngineError("Ray has died: its raylet ended with code -9")

    faulty.before = staticmethod(die)
    with pytest.raises(EngineError) as caught:
        start(tmp_path)
    assert caught.value.code == 3
    last = ledger.rows(tmp_path / "pilot" / "events.jsonl")[-1]
    assert (last["event"], last["round"]) == ("failed", 2)
    assert "Ray has died" in last["error"]
    faulty.before = staticmethod(lambda number: None)
    resume(tmp_path, "pilot")
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("pilot", "whole")]
    assert metrics[0] == metrics[1]
    assert whole["status"] == "done"


@pytest.mark.parametrize("target", ["Ledger.append", "checkpoint.commit"])
def test_a_full_disk_is_an_error_with_code_5_that_loses_nothing(tmp_path, monkeypatch, target):
    reference = start(tmp_path, name="reference")
    original = ledger.Ledger.append if target == "Ledger.append" else checkpoint.commit
    calls = []

    def full(*arguments, **more):
        calls.append(arguments)
        if (target == "checkpoint.commit" and len(calls) > 1) or len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **more)

    owner, name = (ledger.Ledger, "append") if target == "Ledger.append" else (checkpoint, "commit")
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(FolderError, match="the disk is full") as caught:
        start(tmp_path)
    assert caught.value.code == 5
    assert ledger.rows(tmp_path / "pilot" / "metrics.jsonl")
    monkeypatch.setattr(owner, name, original)
    assert resume(tmp_path, tmp_path / "pilot")["accuracy"] == reference["accuracy"]
    for name in ("metrics.jsonl", "clients.jsonl"):
        assert (tmp_path / "pilot" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()


def test_what_cannot_begin_leaves_no_folder(tmp_path):
    resolved = compose.resolve([*SMALL, "data=mnist", f"data.root={tmp_path}"])
    with pytest.raises(DataError):
        runs.start(resolved, runs=tmp_path, name="pilot", options=QUIET)
    assert not (tmp_path / "pilot").exists()


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_never_overwritten(tmp_path):
    start(tmp_path)
    before = (tmp_path / "pilot" / "metrics.jsonl").read_bytes()
    with pytest.raises(FolderError, match="never overwritten") as caught:
        start(tmp_path, "seed=1")
    assert caught.value.code == 5
    assert (tmp_path / "pilot" / "metrics.jsonl").read_bytes() == before


def test_out_is_this_very_folder_and_must_be_empty(tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    assert start(tmp_path, "rounds=1", name=None, out=place)["run"] == str(place)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(FolderError, match="not empty"):
        start(tmp_path, name=None, out=other)
    assert (other / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_name_is_a_folder_name(tmp_path, name):
    with pytest.raises(ConfigError, match="not a folder name"):
        start(tmp_path, name=name)


def test_a_folder_in_use_is_refused_with_its_holder(tmp_path):
    start(tmp_path, "rounds=1")
    place = tmp_path / "pilot"
    held = run_folder.reopen(place)
    with pytest.raises(FolderError, match=r"in use by process \d+ on host .* since \d\d:\d\d"):
        run_folder.reopen(place)
    held.release()
    run_folder.reopen(place).release()


def test_a_killed_process_leaves_no_stale_lock(tmp_path):
    start(tmp_path, "rounds=1")
    place = tmp_path / "pilot"
    script = (
        "import sys, time; from pathlib import Path; from simulations.run import run_folder\n"
        "held = run_folder.reopen(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(place)], stdout=subprocess.PIPE, cwd=Path.cwd()) as other:
        assert other.stdout.readline() == b"held\n"
        assert run_folder.is_held(place)
        with pytest.raises(FolderError, match=f"process {other.pid}"):
            run_folder.reopen(place)
        other.kill()
        other.wait()
    assert not run_folder.is_held(place)
    run_folder.reopen(place).release()


def test_the_lock_of_an_earlier_version_is_seen_and_its_holder_named(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    start(tmp_path, "rounds=1")
    lock = tmp_path / "pilot" / "run.lock"
    lock.write_text('{"pid": 4121, "host": "pi", "since": "18:30"}')
    with lock.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert run_folder.holder(tmp_path / "pilot") == (4121, "process 4121 on host pi since 18:30")
    assert not run_folder.is_held(tmp_path / "pilot")


def test_a_lock_that_we_may_only_read_is_held_while_its_holder_lives(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError

    monkeypatch.setattr(run_folder.locks, "is_held", refuse)
    lock, said = tmp_path / "run.lock", {"pid": os.getpid(), "host": run_folder.socket.gethostname()}
    lock.write_text(json.dumps(said))
    assert run_folder.is_held(tmp_path)
    lock.write_text(json.dumps(said | {"pid": 2**22 + 1}))  # no process has such a number
    assert not run_folder.is_held(tmp_path)
    lock.write_text(json.dumps(said | {"pid": 2**22 + 1, "host": "elsewhere"}))
    assert run_folder.is_held(tmp_path)


@pytest.mark.parametrize("names", [["run.lock"], ["run.lock", ".config.yaml.new"], ["run.lock", "config.yaml"]])
def test_a_run_that_was_killed_in_its_first_writes_leaves_its_name_free(tmp_path, names):
    place = tmp_path / "pilot"
    place.mkdir()
    for name in names:
        (place / name).touch()
    with pytest.raises(FolderError, match="killed before it began") as caught:
        run_folder.find(tmp_path, "pilot")
    assert "--name pilot" in caught.value.mend
    assert start(tmp_path, "rounds=1")["status"] == "done"


def test_a_folder_with_anything_else_in_it_is_not_taken(tmp_path):
    place = tmp_path / "pilot"
    place.mkdir()
    for name in ("run.lock", "thesis.tex"):
        (place / name).touch()
    with pytest.raises(FolderError, match="exists and is not empty"):
        start(tmp_path)
    (place / "thesis.tex").unlink()
    held = run_folder.hold(place)  # just beginning
    with pytest.raises(FolderError, match="exists and is not empty"):
        start(tmp_path)
    held.release()


def test_a_running_run_whose_process_died_counts_as_stopped(tmp_path):
    start(tmp_path, "rounds=1")
    path = tmp_path / "pilot" / "run.json"
    path.write_text(path.read_text().replace('"done"', '"running"'))
    assert run_folder.state(tmp_path / "pilot") == "stopped"


def test_a_file_in_the_way_is_said_to_be_so(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(FolderError, match="in the way"):
        start(tmp_path / "runs")


@pytest.mark.parametrize(("number", "what"), [(errno.EROFS, "not writable"), (errno.ENOSPC, "disk is full")])
def test_what_the_system_refuses_is_explained(tmp_path, number, what):
    with pytest.raises(FolderError, match=what), run_folder.writing(tmp_path):
        raise OSError(number, "...")


def test_a_run_is_found_by_path_id_or_the_beginning_of_its_id(tmp_path):
    start(tmp_path, "rounds=1", name="pilot-1")
    start(tmp_path, "rounds=1", name="pilot-2")
    assert run_folder.find(tmp_path, "pilot-2") == tmp_path / "pilot-2"
    assert run_folder.find(tmp_path, tmp_path / "pilot-1") == tmp_path / "pilot-1"
    with pytest.raises(FolderError, match="may be"):
        run_folder.find(tmp_path, "pilot")
    with pytest.raises(FolderError, match="no run 'x'"):
        run_folder.find(tmp_path, "x")


def test_listing_and_show_tell_the_state(tmp_path, faulty, capsys):
    faulty.before = staticmethod(stop_in(3))
    start(tmp_path)
    (row,) = runs.listing(tmp_path)
    assert (row["run"], row["state"], row["rounds"], row["of"]) == ("pilot", "stopped", 2, 4)
    runs.show(tmp_path / "pilot", options=Options())
    shown = capsys.readouterr().out
    assert "stopped, 2 of 4 rounds" in shown
    assert "fedkd resume" in shown
