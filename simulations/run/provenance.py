"""Identifies the running code: the commit of its checkout, and a hash of its files with uncommitted changes."""

import hashlib
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DECISIVE = ("fedkd", "strategies", "clients")  # packages that decide the results of a run
_DRIVING = ("simulations/assemble.py", "simulations/run/driver.py")  # these files decide them too
_EVERYTHING = (*_DECISIVE, "simulations", "conf")


@cache
def decisive(root: Path = ROOT) -> str:
    """SHA-256 of all code that determines a run's results, and of PyTorch's version."""
    files = [path for package in _DECISIVE for path in _files(root / package)]
    return _digest(root, [*files, *(root / name for name in _DRIVING)], f"torch {metadata.version('torch')}")


@cache
def everything(root: Path = ROOT) -> str:
    """SHA-256 of all files of our packages and of conf, committed or not."""
    return _digest(root, [path for package in _EVERYTHING for path in _files(root / package)])


def commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout that this code runs from; None for an installed wheel.

    It ends with `-dirty` if a file has changed, or if our packages hold an untracked one.
    """
    if not (root / ".git").exists():
        return None
    name = _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    if not name or name.endswith("-dirty"):
        return name or None
    return f"{name}-dirty" if _git(root, "ls-files", "--others", "--exclude-standard", "--", *_EVERYTHING) else name


def _files(folder: Path) -> list[Path]:
    return sorted(path for pattern in ("*.py", "*.yaml") for path in folder.rglob(pattern))


def _digest(root: Path, files: Iterable[Path], *more: str) -> str:
    lines = [f"{path.relative_to(root).as_posix()} {_sha256(path.read_bytes())}" for path in files]
    return _sha256("\n".join([*lines, *more]).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(root: Path, *args: str) -> str:
    """Git's output; empty if git fails or is missing."""
    command = ["git", "-C", str(root), *args]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    return ""
