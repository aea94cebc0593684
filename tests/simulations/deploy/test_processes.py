"""Children: found by process id and time of birth, ended with all that they started."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedkd.errors import DeployError
from simulations.deploy import processes, server

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session={apart})
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "program", lambda name: sys.executable)


def start(tmp_path: Path, code: str, marker: Path | None = None) -> processes.Child:
    return processes.start(["python", "-c", code], tmp_path / "log", os.environ, marker=marker)


def until(what: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("apart", [False, True])
def test_a_child_ends_with_all_that_it_started(tmp_path: Path, apart: bool) -> None:
    child = start(tmp_path, FAMILY.format(apart=apart))
    until(lambda: len(child.output()) > 0)
    grandchild = int(child.output()[0])
    child.end(5)
    assert processes.born(child.process.pid) is None
    assert processes.born(grandchild) is None


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    child = start(tmp_path, deaf)
    until(lambda: child.output() == ["1"])
    child.end(0.5)
    assert child.process.wait(5) == -signal.SIGKILL


def test_ending_twice_is_well(tmp_path: Path) -> None:
    child = start(tmp_path, "pass")
    child.process.wait(10)
    child.end()
    child.end()


def test_a_marker_finds_the_process_and_no_other(tmp_path: Path) -> None:
    marker = tmp_path / "pids" / "one"
    child = start(tmp_path, "import time; time.sleep(60)", marker)
    assert processes.read_marker(marker) == child.process.pid
    marker.write_text(json.dumps({"pid": child.process.pid, "born": "another time"}))  # the number was used again
    assert processes.read_marker(marker) is None
    child.end()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pid": "x"}', '{"pid": 999999999, "born": "1"}'])
def test_a_marker_without_a_process_is_none(tmp_path: Path, text: str) -> None:
    marker = tmp_path / "one"
    marker.write_text(text)
    assert processes.read_marker(marker) is None


def test_a_zombie_is_no_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    until(lambda: processes.born(child.pid) is None)
    child.wait()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert processes.is_taken("127.0.0.1", server.getsockname()[1])
    assert not processes.is_taken("127.0.0.1", processes.free_port())


def test_a_program_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(DeployError, match="'flower-nothing' is not installed"):
        processes.program("flower-nothing")


def test_a_program_that_takes_too_long(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="did not finish within"):
        processes.run(["x", "-c", "import time; time.sleep(60)"], {"FLWR_HOME": str(tmp_path)}, seconds=0.5)


def test_flowers_programs_see_no_folder_that_is_called_as_the_connection_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / server.CONNECTION).mkdir()
    (tmp_path / server.CONNECTION / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    look = f"import pathlib; print(pathlib.Path('{server.CONNECTION}').exists())"
    done = processes.run(["x", "-c", look], {"FLWR_HOME": str(tmp_path / "home")})
    assert done.stdout.strip() == "False"
