"""File locks that the system releases when their holder dies: no lock is ever stale."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock as Lock

PATIENCE = 0.1  # seconds: `is_held` in another process holds the lock for some microseconds


def take(path: Path, text: bytes = b"") -> "Lock | None":
    """Lock a file and write `text` to it; None if another process holds the lock. Raises OSError if locking fails."""
    from filelock import FileLock, Timeout  # 50 ms

    lock = FileLock(
        path,
        timeout=PATIENCE,
        poll_interval=PATIENCE / 10,
        thread_local=False,
        fallback_to_soft=False,  # a soft lock outlives its holder
        preserve_lock_file=True,
        on_acquired=partial(_write, text) if text else None,
    )
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def is_held(path: Path) -> bool:
    """Whether a living process has the lock of a file. Raises OSError if we lack permission."""
    if not path.exists():
        return False
    lock = take(path)
    if lock is not None:
        lock.release()
    return lock is None


def text(path: Path) -> str:
    """The last holder's text. Raises OSError if there is none."""
    with path.open("rb", buffering=0) as file:
        try:
            return file.read().decode(errors="replace")
        except PermissionError:  # on Windows the locked byte, the first, cannot be read
            file.seek(1)
            return file.read().decode(errors="replace")


def _write(text: bytes, handle: int) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, b" " + text)  # the first byte: see `text`
