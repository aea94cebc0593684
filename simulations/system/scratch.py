"""Private temporary folders with paths short enough for sockets. Making one removes those of killed processes."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.errors import EngineError
from simulations.system import locks

if TYPE_CHECKING:
    from filelock import BaseFileLock as Lock

SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # the longest path that the system gives a socket
_RANDOM = 8  # characters that tempfile adds to a prefix


@contextmanager
def folder(kind: str, longest: str = "") -> Iterator[Path]:
    """A folder that only this user may enter, removed at the end. `longest`: the longest path of a socket in it.

    Removes folders of this kind that killed processes left. Raises EngineError if no place is short enough.
    """
    prefix, root = _prefix(kind), place(_below(kind, longest))
    for candidate in _places():
        _sweep(candidate, prefix)
    path, lock = _locked(prefix, root)
    try:
        yield path
    finally:
        lock.release()
        shutil.rmtree(path, ignore_errors=True)


def place(longest: str = "", first: str | None = None) -> Path:
    """Where temporary files go: `first`, or the user's own folder, or one in which a socket called `longest` fits.

    Raises EngineError if no place is short enough.
    """
    if not longest or sys.platform == "win32":  # where Ray's sockets are ports
        return Path(tempfile.gettempdir())
    spare, candidates = SOCKET_BYTES - len(os.fsencode(f"/{longest}")), _places(first)
    if fitting := [path for path in candidates if len(os.fsencode(path)) <= spare]:
        return fitting[0]
    what = f"no folder for temporary files has a short enough path: a socket's may have {SOCKET_BYTES} bytes"
    mend = f"set TMPDIR to a folder of your own whose path has at most {spare} bytes, or use engine=inline"
    raise EngineError(what, where=f"tried {', '.join(map(str, candidates))}", mend=mend)


def detour(kind: str, longest: str) -> str:
    """Why a `folder` is outside the user's temporary folder; empty if it is inside. Raises EngineError like `place`."""
    path, own = place(_below(kind, longest)), tempfile.gettempdir()
    why = f"its files are in {path}, because a socket below {own} would have too long a path"
    return "" if path == Path(own) else why


def _prefix(kind: str) -> str:
    return f"fedkd-{kind}-"


def _below(kind: str, longest: str) -> str:
    return f"{_prefix(kind)}{'x' * _RANDOM}/{longest}" if longest else ""


def _places(first: str | None = None) -> list[Path]:
    """Writable folders: `first`, the user's own, the system's; memory last."""
    names = [first, tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    paths = dict.fromkeys(Path(name) for name in names if name and os.path.isabs(name))
    return [path for path in paths if path.is_dir() and os.access(path, os.W_OK | os.X_OK)]


def _locked(prefix: str, root: Path) -> tuple[Path, "Lock"]:
    """A new folder and its lock. Tries again if another process removes the folder before it is locked."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        lock = locks.take(path / "lock")
        if lock is not None and (path / "lock").exists():
            return path, lock


def _sweep(root: Path, prefix: str) -> None:
    """Remove folders of dead processes. A folder without a lock is being made, or is not ours."""
    for path in root.glob(f"{prefix}*"):
        with suppress(OSError):
            if path.is_symlink() or not (path / "lock").exists():
                continue
            lock = locks.take(path / "lock")
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                lock.release()
