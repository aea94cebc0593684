"""Flower's programs as child processes: output to a file, found again and ended by process id."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedkd.errors import DeployError

END_SECONDS = 20.0  # from SIGTERM to SIGKILL; Flower's programs take 4 to 5
_QUIET = {  # for Flower's programs: no telemetry, no downloads
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Child:
    """A running program, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def tail(self, lines: int = 5) -> str:
        """The last lines of its output."""
        return "\n".join(self.output()[-lines:])

    def output(self) -> list[str]:
        with contextlib.suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    def end(self, seconds: float = END_SECONDS) -> None:
        """End it and its children. Safe to call twice."""
        end_all([self], seconds)


def end_all(children: Sequence[Child], seconds: float = END_SECONDS) -> None:
    """End some children together, and their descendants. A second Ctrl-C does not interrupt this."""
    with _undisturbed():
        families = [descendants(child.process.pid) for child in children]  # first: orphans lose their parent
        for child in children:
            if child.ended() is None:
                child.process.terminate()
        for child, family in zip(children, families, strict=True):
            end_group(child.process.pid, seconds, child.process.poll, family)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(1)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM in this block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's programs; `home` is the folder of their files."""
    here = str(Path(sys.executable).parent)
    kept = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "RAY_ADDRESS"}}
    path = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, **_QUIET, "PATH": path, "FLWR_HOME": str(home)}


def program(name: str) -> str:
    """The path of one of Flower's programs, beside this Python. Raises DeployError."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    raise DeployError(f"'{name}' is not installed beside {sys.executable}", mend="pip install 'flwr~=1.42.0'")


def start(command: Sequence[str], log: Path, env: Mapping[str, str], *, marker: Path | None = None) -> Child:
    """Start a program in its own session; `marker`: the file for its process id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program(command[0]), *command[1:]],
            env=dict(env),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only us; we end it in order
        )
    if marker is not None:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps({"pid": process.pid, "born": born(process.pid)}), encoding="utf-8")
    return Child(process, log)


def run(command: Sequence[str], env: Mapping[str, str], seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run one of Flower's programs to its end. Raises DeployError if it takes too long.

    It runs in Flower's own folder: Flower would take the name of the connection for a path if the current folder
    contained a folder of that name.
    """
    home = Path(env["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return subprocess.run(
            [program(command[0]), *command[1:]],
            env=dict(env),
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeployError(f"'{command[0]} {command[1]}' did not finish within {seconds:g} s") from None


def read_marker(marker: Path) -> int | None:
    """The process id in a marker, if that same process still runs."""
    try:
        recorded = json.loads(marker.read_text(encoding="utf-8"))
        pid, started = int(recorded["pid"]), recorded["born"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if started is not None and born(pid) == started else None


def born(pid: int) -> str | None:
    """When a process was started, as the system writes it; None if it does not run. Tells reused ids apart."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def end_group(
    pid: int,
    seconds: float = END_SECONDS,
    poll: Callable[[], object] = lambda: None,
    family: Collection[int] | None = None,
) -> None:
    """SIGTERM to a process, then SIGKILL to it and to the rest of its `family` (default: `descendants(pid)`)."""
    members = set(descendants(pid) if family is None else family)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    _wait([pid], seconds, poll)  # the process ends its own children first
    for number, patience in ((signal.SIGTERM, seconds / 4), (signal.SIGKILL, seconds)):
        alive = [member for member in {pid, *members, *descendants(pid)} if born(member)]
        for member in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, number)
        _wait(alive, patience, poll)


def _wait(pids: Sequence[int], seconds: float, poll: Callable[[], object]) -> None:
    """Wait until none of them runs, or time is up; `poll` reaps our own child."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(born, pids)):
        poll()
        time.sleep(0.05)


def descendants(pid: int) -> set[int]:
    """The other processes of a session leader, and all their children, whatever sessions these are in."""
    family, parents = {pid}, _parents()
    while more := {child for child, (parent, leader) in parents.items() if parent in family or leader == pid} - family:
        family |= more
    return family - {pid}


def _parents() -> dict[int, tuple[int, int]]:
    """Process id -> parent and session."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = (int(fields[1]), int(fields[3]))
    if not parents:
        done = subprocess.run(["ps", "-axo", "pid=,ppid=,sess="], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            with contextlib.suppress(ValueError):
                pid, parent, leader = line.split()[:3]
                parents[int(pid)] = (int(parent), int(leader, 16))
    return parents


def is_taken(host: str, port: int) -> bool:
    """Whether the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
