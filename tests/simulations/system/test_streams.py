import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulations.cli import main
from simulations.system import streams

ROOT = Path(main.__file__).parents[2]
TINY = ["strategy=fedavg", "clients=2", "rounds=2", "students=mlp", "train.steps=1", "evaluate.probe=0"]


def stream(number, encoding="utf-8", errors="strict"):
    return streams.lasting(number, SimpleNamespace(encoding=encoding, errors=errors, write_through=False))


def nobody_reads(encoding="utf-8"):
    """The writing end of a pipe whose reader has gone."""
    there, here = os.pipe()
    os.close(there)
    return stream(here, encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "? ? ? ?"), ("latin-1", "± ? ? ?"), ("cp1252", "± € ? ?"), ("utf-8", "± € ╸ ?")],
)
def test_characters_that_an_encoding_lacks_are_replaced(encoding, shown, tmp_path):
    with (tmp_path / "out").open("wb") as file:
        out = stream(file.fileno(), encoding)
        print("± € ╸ \udc80", file=out, flush=True)
    assert (tmp_path / "out").read_text(encoding=encoding) == shown + "\n"


def test_the_errors_that_python_chose_for_stderr_are_kept(tmp_path):
    with (tmp_path / "out").open("wb") as file:
        print("±", file=stream(file.fileno(), "ascii", "backslashreplace"), flush=True)
    assert (tmp_path / "out").read_bytes() == b"\\xb1\n"


def test_a_stream_that_nobody_reads_swallows_the_rest():
    out = nobody_reads()
    for _ in range(3):
        print("x" * 100_000, file=out, flush=True)
    os.write(out.fileno(), b"what children print goes nowhere too")
    out.close()


def test_a_full_pipe_that_does_not_block_is_waited_for():
    there, here = os.pipe()
    os.set_blocking(here, False)
    child = subprocess.Popen([sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"], stdin=there, stdout=-1)
    os.close(there)
    print("x" * 300_000, end="", file=stream(here), flush=True)
    os.close(here)
    assert child.communicate()[0] == b"300000\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_told_once_and_ends_nothing(capfd):
    with open("/dev/full", "wb") as full:
        out = stream(full.fileno())
        for _ in range(3):
            print("x", file=out, flush=True)
    assert capfd.readouterr().err == "warn   nothing more can be printed: No space left on device\n"


def test_a_run_that_loses_its_screen_runs_to_its_end_and_its_log_tells_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", nobody_reads("ascii"))
    assert main.main(["run", *TINY, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "done"
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    for line in ("2 clients, 2 per round", "round 1/2   accuracy 0.", "round 2/2   accuracy 0.", "done   2 rounds in"):
        assert line in log


def test_a_run_that_fails_without_a_screen_says_so_by_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", nobody_reads())
    monkeypatch.setattr(sys, "stderr", nobody_reads())
    assert main.main(["run", *TINY, "train.lr=1e30", "--out", str(tmp_path / "run")]) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="terminals do not hang up here")
def test_work_continues_when_the_terminal_hangs_up(monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGHUP)
    try:
        streams.outlive_terminal()
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_with_closed_streams_ends_well(closed):
    command = f'"{sys.executable}" -m simulations.cli config schema {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
