"""Runs one cell in a process of its own: starts, resumes or restarts it.

Free of torch until a run begins; the process that this one is forked from has imported it already.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any

from fedkd.configuration.resolved import Resolved
from fedkd.errors import CheckpointError, ConfigError, FedkdError, FolderError, RunError
from fedkd.record import ledger
from simulations.run import run_folder, runs
from simulations.run.options import Options
from simulations.system import streams

LOCK_SECONDS = 20.0  # a terminating process may need so long to save
_SILENT = Options(quiet=True, json=True)  # nobody reads the JSON object


@dataclass(frozen=True)
class CellResult:
    """How a cell ended: `done`, `stopped` or `failed` with an exit code and why."""

    status: str
    code: int = 0
    error: str = ""

    @property
    def is_disk_full(self) -> bool:
        return run_folder.FULL in self.error


def main(resolved: Resolved, folder: Path, command: Sequence[str], log: Path, answer: "connection.Connection") -> None:
    """The worker process: run the cell and send its result."""
    signal.signal(signal.SIGTERM, _stop)
    _redirect(log)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer.send(run(resolved, folder, command))


def run(resolved: Resolved, folder: Path, command: Sequence[str]) -> CellResult:
    """Run a cell in this process; run.json records `command`. Errors become a result: the other cells continue."""
    try:
        summary = _start_or_resume(resolved, folder, command)
        return CellResult(summary["status"], runs.exit_code(summary))
    except KeyboardInterrupt:
        return CellResult("stopped", runs.EXIT_CODES["SIGTERM"])
    except RunError as error:  # without its advice to resume the run by itself
        return CellResult("failed", error.code, error.what)
    except FedkdError as error:
        return CellResult("failed", error.code, str(error))
    except Exception as error:  # noqa: BLE001  a bug in one algorithm must not lose the others' results
        return CellResult("failed", 1, f"{type(error).__name__}: {error}")


def _start_or_resume(resolved: Resolved, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Start the run, or resume it; if it cannot be resumed, move it aside and start again."""
    if folder.exists():
        _wait_for_lock(folder)
        if _is_whole(folder):
            with suppress(CheckpointError, ConfigError):
                return runs.resume(folder, runs=folder.parent, options=_SILENT)
        _move_aside(folder)
    return runs.start(resolved, runs=folder.parent, name=folder.name, options=_SILENT, command=command)


def _is_whole(folder: Path) -> bool:
    """False if the folder is incomplete or damaged, or claims to be done without all rounds."""
    try:
        records = ledger.read(folder)
    except FolderError:
        return False
    return records.run.get("state") != "done" or len(records.metrics) == records.run.get("num_rounds")


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.broken-{number}")).exists():
        number += 1
    with run_folder.writing(folder):
        folder.rename(aside)
    print(f"{folder} cannot be resumed: moved to {aside}, started again", file=sys.stderr, flush=True)


def _wait_for_lock(folder: Path) -> None:
    """Wait for a worker of a killed comparison: it notices, saves and ends."""
    end = time.monotonic() + LOCK_SECONDS
    while run_folder.is_held(folder) and time.monotonic() < end:
        time.sleep(0.1)


def _end_with_parent() -> None:
    """Save and stop when the parent process is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _redirect(log: Path) -> None:
    """Redirect the output of libraries to a file, away from the screen."""
    try:
        file = log.open("a", encoding="utf-8")
    except OSError:
        file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the life of the process
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    streams.keep()
