"""Files of a deployment: other users can never read secret ones, not even briefly; folders appear atomically.

Disk errors become FolderError.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedkd.errors import FolderError

OPEN, PROGRAM, SECRET = 0o644, 0o755, 0o600
PRIVATE = 0o700  # folders
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Content:
    """The content of a file, and its permissions."""

    data: bytes
    mode: int = OPEN


class PlaceError(FolderError):
    """A folder of a deployment: existing, not writable, or on a full disk."""

    topic = "folder"


Tree = Mapping[str, Content]  # by path relative to the folder, with slashes


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns disk errors into a FolderError that says how to mend them."""
    try:
        yield
    except OSError as error:
        where, reason = str(error.filename2 or error.filename or path), error.strerror or str(error)
        mend = "free some space" if error.errno in _FULL else "change its owner or permissions, or use another folder"
        raise PlaceError(f"cannot be written: {reason}", where=where, mend=mend) from error


def text(content: str, mode: int = OPEN) -> Content:
    return Content(content.encode(), mode)


def create(path: Path, content: Content) -> None:
    """Create a file and sync it to disk. Raises FolderError, also if the file exists."""
    with writing(path):
        # Set the permissions in `open`: a later chmod would leave the file readable for a moment.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, content.mode)
        try:
            _write(handle, content.data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def replace(path: Path, content: Content) -> None:
    """Replace a file, atomically. Raises FolderError."""
    with writing(path.parent):
        write_atomically(path, content)


def write_atomically(path: Path, content: Content) -> None:
    """Write or replace a file, atomically and synced to disk. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=".fedkd-", dir=path.parent)  # 0600
    temporary = Path(name)
    try:
        _write(handle, content.data)
        if content.mode != SECRET:
            temporary.chmod(content.mode & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fill(folder: Path, tree: Tree) -> None:
    """Write a tree into an existing folder; only their owner can enter the subfolders."""
    for name, content in tree.items():
        path = folder / name
        with writing(folder):
            for parent in reversed(path.relative_to(folder).parents[:-1]):
                (folder / parent).mkdir(PRIVATE, exist_ok=True)
        create(path, content)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder to fill: it becomes `target` atomically at the end, or is deleted after an error.

    `target` may be an empty folder. Raises FolderError.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".fedkd-", dir=target.parent))  # 0700
    try:
        yield temporary
        with writing(target):
            temporary.rename(target)  # fails if `target` is no longer empty
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read(path: Path) -> bytes:
    """The content of a file. Raises FolderError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlaceError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _write(handle: int, data: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
