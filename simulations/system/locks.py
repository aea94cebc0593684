"""Locks on files that the system releases when their holder dies, however it dies: no lock is ever stale."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock as Lock

PATIENCE = 0.1  # seconds: a process that asks whether a lock is held takes it for some microseconds


def take(path: Path, words: bytes = b"") -> "Lock | None":
    """The lock of a file, which then holds `words`; None if another process has it. Raises OSError if it has none."""
    from filelock import FileLock, Timeout  # 50 ms

    lock = FileLock(
        path,
        timeout=PATIENCE,
        poll_interval=PATIENCE / 10,
        thread_local=False,
        fallback_to_soft=False,  # which would outlive its holder
        preserve_lock_file=True,
        on_acquired=_writing(words) if words else None,
    )
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def is_held(path: Path) -> bool:
    """Whether a living process has the lock of a file. Raises OSError where we may not ask."""
    if not path.exists():
        return False
    lock = take(path)
    if lock is not None:
        lock.release()
    return lock is None


def words(path: Path) -> str:
    """What the last holder wrote. Raises OSError if there is nothing to read."""
    with path.open("rb", buffering=0) as file:
        try:
            return file.read().decode(errors="replace")
        except PermissionError:  # on Windows the locked byte, the first, cannot be read
            file.seek(1)
            return file.read().decode(errors="replace")


def _writing(words: bytes) -> Callable[[int], None]:
    def write(handle: int) -> None:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, b" " + words)  # the first byte: see `words`

    return write
