"""Private temporary folders with paths short enough for sockets; each removes what killed processes left."""

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
    for each in _places():
        _sweep(each, prefix)
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
    spare, tried = SOCKET_BYTES - len(os.fsencode(f"/{longest}")), _places(first)
    if found := [each for each in tried if len(os.fsencode(each)) <= spare]:
        return found[0]
    what = f"no folder for temporary files has a short enough path: a socket's may have {SOCKET_BYTES} bytes"
    mend = f"set TMPDIR to a folder of your own whose path has at most {spare} bytes, or use engine=inline"
    raise EngineError(what, where=f"tried {', '.join(map(str, tried))}", mend=mend)


def detour(kind: str, longest: str) -> str:
    """Why a `folder` is outside the user's temporary folder; empty if it is inside. Raises EngineError like `place`."""
    found, own = place(_below(kind, longest)), tempfile.gettempdir()
    return (
        ""
        if found == Path(own)
        else f"its files are in {found}, because a socket below {own} would have too long a path"
    )


def _prefix(kind: str) -> str:
    return f"fedkd-{kind}-"


def _below(kind: str, longest: str) -> str:
    return f"{_prefix(kind)}{'x' * _RANDOM}/{longest}" if longest else ""


def _places(first: str | None = None) -> list[Path]:
    """Writable folders: `first`, the user's own, the system's; memory last."""
    asked = [first, tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    found = dict.fromkeys(Path(each) for each in asked if each and os.path.isabs(each))
    return [each for each in found if each.is_dir() and os.access(each, os.W_OK | os.X_OK)]


def _locked(prefix: str, root: Path) -> tuple[Path, "Lock"]:
    """A new folder and its lock. Tries again if another process removes the folder before it is locked."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        lock = locks.take(path / "lock")
        if lock is not None and (path / "lock").exists():
            return path, lock


def _sweep(root: Path, prefix: str) -> None:
    """Remove folders whose owner is dead. A folder without a lock is still being made, or is not ours."""
    for path in root.glob(f"{prefix}*"):
        with suppress(OSError):
            if path.is_symlink() or not (path / "lock").exists():
                continue
            lock = locks.take(path / "lock")
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                lock.release()
