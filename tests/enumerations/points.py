"""Runs of the command line in processes of their own, in which something happens at the n-th write to a folder.

A point is whatever could be the last thing a process does to a file: open for writing, write, half a write, flush,
fsync, truncate, rename, remove, make or remove a folder. Processes are forked from one that has loaded everything, so
that a run of three rounds takes a second.
"""

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 120  # that a command may take on a busy machine
# A little of everything that a resume could lose: kept entries, a generator with its optimiser, statistics.
WORDS = [
    "data=digits",
    "students=fedgen-cnn",
    "students.statistics=local",
    "strategy=fedgen",
    "strategy.share=head",
    "strategy.generator_steps=1",
    "partition.alpha=0.5",
    "clients=4",
    "clients_per_round=3",
    "train.steps=1",
    "train.batch=8",
    "evaluate.probe=8",
    "evaluate.common=0",
    "checkpoint.every=1",
    "engine=inline",
]
_TAKES_SPACE = frozenset({"open", "write", "half a write", "flush", "fsync", "mkdir"})


@dataclass
class Points:
    """Counts the points below a folder; at number `at` it acts. All that is met is in `met`."""

    root: str
    at: int
    act: Callable[["Points", Callable[[], Any]], None]
    met: list[str] = field(default_factory=list)
    is_full: bool = False

    def meet(self, what: str, place: Any, half: Callable[[], Any] = lambda: None) -> None:
        """`half` does a part of what is about to be done."""
        path = os.fspath(place) if isinstance(place, str | os.PathLike) else f"/proc/self/fd/{place}"
        path = os.path.realpath(path) if path.startswith("/proc") else os.path.abspath(path)
        if not path.startswith(self.root):
            return
        if self.is_full and what in _TAKES_SPACE:
            raise _full(path)
        self.met.append(f"{what} {os.path.relpath(path, self.root)}")
        if len(self.met) == self.at:
            self.act(self, half)

    def watch(self) -> None:
        """From now on, for the rest of this process."""
        opened, low = io.open, os.open

        def open_(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return opened(file, mode, *more, **named)
            self.meet("open", file)
            return _Watched(opened(file, mode, *more, **named), file, self.meet)

        def low_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.meet("open", path)
            return low(path, flags, *more, **named)

        io.open = open_  # type: ignore[assignment]
        __builtins__["open"] = open_  # type: ignore[index]
        os.open = low_open  # type: ignore[assignment]
        for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "remove", "truncate", "ftruncate"):
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def watched(place: Any, *more: Any, **named: Any) -> Any:
            folder = named.get("dir_fd")
            base = "" if folder is None else os.path.realpath(f"/proc/self/fd/{folder}")
            self.meet(name, place if isinstance(place, int) else os.path.join(base, place))
            return do(place, *more, **named)

        return watched


class _Watched:
    """A file that was opened for writing."""

    def __init__(self, file: Any, path: Any, meet: Callable[..., None]) -> None:
        self._file, self._path, self._meet = file, path, meet

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._meet("write", self._path)
        self._meet("half a write", self._path, half)
        return int(self._file.write(data))

    def flush(self) -> None:
        self._meet("flush", self._path)
        self._file.flush()

    def truncate(self, *size: int) -> int:
        self._meet("truncate", self._path)
        return int(self._file.truncate(*size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def kill(points: Points, half: Callable[[], Any]) -> None:
    """End this process as `kill -9` does, perhaps in the middle of a write."""
    half()
    os.kill(os.getpid(), signal.SIGKILL)


def fill(points: Points, half: Callable[[], Any]) -> None:
    """From here on the disk is full; where space is not needed, from the next point that needs some."""
    points.is_full = True
    if points.met[-1].startswith(tuple(f"{what} " for what in _TAKES_SPACE)):
        half()
        raise _full(points.met[-1])


def _full(path: str) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def command(
    args: Sequence[str],
    log: Path,
    root: Path | None = None,
    at: int = 0,
    act: Callable[[Points, Callable[[], Any]], None] = kill,
) -> int:
    """The exit code of a command line, -9 if it was killed. `log` has its words and, as .points, its points."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _play(args, log, Points(os.path.realpath(root), at, act) if root is not None else None)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _play(args: Sequence[str], log: Path, points: Points | None) -> NoReturn:
    code = 99  # nobody's
    try:
        signal.alarm(SECONDS)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(place, 1)
        os.dup2(place, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        from simulations.cli import main

        if points is not None:
            points.watch()
        code = main.main(list(args))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if points is not None:
            points.root = "\0"  # nothing more is a point
            log.with_suffix(".points").write_text(json.dumps(points.met), encoding="utf-8")
        os._exit(code)


def warm() -> None:
    """Load what every run needs, once for all processes that are forked from here."""
    import torch

    torch.set_num_threads(1)  # a fork has no other threads
    from fedkd.configuration import compose
    from simulations import assemble
    from simulations.run import driver, tensorboard  # noqa: F401

    assemble.assemble(compose.resolve([*WORDS, "rounds=1"]).config)


def results(run: Path) -> dict[str, bytes]:
    """What a disturbed run must have alike with an undisturbed one: the ledger and the last checkpoint."""
    last = sorted((run / "checkpoints").glob("round-*"))[-1]
    files = [run / "metrics.jsonl", run / "clients.jsonl", last / "server.safetensors", last / "clients.safetensors"]
    return {path.name: path.read_bytes() for path in files}


def chosen(count: int, limit: int | None) -> list[int]:
    """Which of the points 1 to `count` are run: all, or `limit` of them, evenly."""
    if limit is None or limit >= count:
        return list(range(1, count + 1))
    return sorted({1 + round(k * (count - 1) / max(1, limit - 1)) for k in range(limit)})
