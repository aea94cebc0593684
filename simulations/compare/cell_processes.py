"""Runs the cells of a comparison side by side, each in its own process. Free of torch: only the children import it."""

import multiprocessing
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from fedkd.configuration.resolved import Resolved
from simulations.analysis import grid
from simulations.analysis.plan import Cell
from simulations.compare import cell_process
from simulations.compare.cell_process import CellResult
from simulations.compare.progress_table import ProgressDisplay
from simulations.system import machine, scratch

TICK = 0.5  # seconds between reads of the ledgers of running cells
PATIENCE = 60.0  # seconds for children to save

_PRELOAD = "simulations.compare.preload"
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"  # Windows forks nothing
_SOCKET = "pymp-12345678/listener-12345678"  # the name that multiprocessing gives it


@dataclass
class _Running:
    cell: Cell
    process: BaseProcess
    answer: "connection.Connection"

    def outcome(self) -> CellResult:
        """The child's result, or how it died."""
        with suppress(EOFError, OSError):
            if self.answer.poll():
                result: CellResult = self.answer.recv()
                return result
        code = self.process.exitcode or 0
        end = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        hint = f"too little memory is a usual cause: {machine.limits()}" if "SIGKILL" in end else "see log.txt"
        return CellResult("failed", 1, f"its process ended {end}; {hint}")


def warm_up() -> None:
    """Start the fork server, which imports what all cells need; returns at once."""
    if _METHOD != "forkserver":
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOAD])
    with _without_interrupts(), _short_names():
        from multiprocessing import forkserver

        forkserver.ensure_running()


def run(tasks: Mapping[Cell, Resolved], folder: Path, jobs: int, display: ProgressDisplay) -> dict[str, CellResult]:
    """Run cells, `jobs` at a time; gives folder -> result. A failed cell does not stop the others, a full disk does.

    Re-raises KeyboardInterrupt when all children have saved; a second one kills them.
    """
    waiting, running, outcomes = deque(tasks.items()), list[_Running](), dict[str, CellResult]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not any(outcome.is_disk_full for outcome in outcomes.values()):
                _start(*waiting.popleft(), folder, running, display)
            if not running:
                break
            connection.wait([child.process.sentinel for child in running], timeout=TICK)
            for child in [child for child in running if not child.process.is_alive()]:
                running.remove(child)
                outcomes[child.cell.folder] = outcome = child.outcome()
                display.ended(child.cell, outcome)
            display.tick()
    finally:
        _stop(running)
    return outcomes


def run_here(tasks: Mapping[Cell, Resolved], folder: Path, display: ProgressDisplay) -> dict[str, CellResult]:
    """Run the cells one after the other in this process: --debug."""
    outcomes = {}
    for cell, resolved in tasks.items():
        display.started(cell)
        outcomes[cell.folder] = outcome = cell_process.run(resolved, folder / cell.folder, _command(cell))
        display.ended(cell, outcome)
        if outcome.status == "stopped":
            raise KeyboardInterrupt
    return outcomes


def _start(cell: Cell, resolved: Resolved, folder: Path, running: list[_Running], display: ProgressDisplay) -> None:
    context: Any = multiprocessing.get_context(_METHOD)
    receiver, sender = context.Pipe(duplex=False)
    arguments = (resolved, folder / cell.folder, _command(cell), folder / "log.txt", sender)
    # Daemon: the child ends with this process, if nothing else ends it.
    process = context.Process(target=cell_process.main, args=arguments, name=cell.name, daemon=True)
    with _without_interrupts(), _without_script():  # a child that is not in the list yet could not be stopped
        process.start()
        running.append(_Running(cell, process, receiver))
    sender.close()
    display.started(cell)


def _command(cell: Cell) -> list[str]:
    return ["fedkd", "run", *grid.run_overrides(cell.overrides, cell.seed)]


def _stop(running: Sequence[_Running]) -> None:
    """Let children save and end."""
    for child in running:
        child.process.terminate()
    end = time.monotonic() + PATIENCE
    try:
        for child in running:
            child.process.join(max(0.0, end - time.monotonic()))
    finally:
        for child in running:
            if child.process.is_alive():
                child.process.kill()


@contextmanager
def _short_names() -> Iterator[None]:
    """Use a short temporary folder: the path of the fork server's socket must not be too long."""
    before, tempfile.tempdir = tempfile.tempdir, str(scratch.place(_SOCKET))
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _without_script() -> Iterator[None]:
    """A child would execute the script that called fedkd.compare again; it needs nothing of it."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; those started in this context ignore it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
