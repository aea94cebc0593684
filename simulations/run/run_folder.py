"""Run folders: made once, never overwritten, locked while in use, readable at any moment. Free of torch."""

import errno
import itertools
import json
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedkd
from fedkd import strict_json
from fedkd.errors import ConfigError, FolderError
from fedkd.record import ledger
from simulations.run import provenance
from simulations.system import locks

if TYPE_CHECKING:
    from simulations.system.locks import Lock

FULL = "the disk is full"  # the error's text
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_UNLOCKABLE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_LONGEST_LOG = 1 << 20  # bytes of one client's errors.log
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_LOCK = "run.lock"
_FIRST = {_LOCK, "config.yaml", ".config.yaml.new", "code", ".run.json.new"}  # the files before run.json
_PACKAGES = ("torch", "numpy", "safetensors", "ray", "flwr")


@dataclass(frozen=True)
class RunFolder:
    """A run folder whose lock this process holds."""

    path: Path
    lock: "Lock"

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def info(self) -> dict[str, Any]:
        """run.json."""
        return info(self.path)

    def note(self, **facts: Any) -> None:
        """Add facts to run.json, atomically."""
        with suppress(FolderError):
            facts = {**self.info(), **facts}
        self.write_json("run.json", facts)

    def write_json(self, name: str, value: Any) -> None:
        """Write a small file, atomically."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a small text file, atomically."""
        temporary = self.path / f".{name}.new"
        with writing(self.path):
            # Names of files may not be valid text.
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)

    def log(self, text: str) -> None:
        """Append to the human log. Ignores a full disk, which must not hide the original error."""
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError), (self.path / "log.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{stamp} {text}\n")

    def log_error(self, client: int, text: str) -> None:
        """Append a traceback to one client's errors, up to a size limit for clients that fail every round."""
        folder = self.path / "clients" / str(client)
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "errors.log").open("a", encoding="utf-8", errors="backslashreplace") as file:
                if file.tell() < _LONGEST_LOG:
                    file.write(text.rstrip() + "\n\n")

    def discard(self) -> None:
        """Remove a folder without any round."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Release the lock. Safe to call twice."""
        self.lock.release()


def create(runs: Path, strategy: str, digest: str, *, name: str | None = None, out: Path | None = None) -> RunFolder:
    """A new folder: `out` itself, else `runs/name`, else `runs/MMDD-HHMM-strategy-hash`. Raises FolderError."""
    path = out or (proposed(runs, strategy, digest) if name is None else named(runs, name))
    if out is not None or name is not None:
        _refuse_used(path, f"choose another --{'name' if out is None else 'out'}")
    with writing(path):
        path.mkdir(parents=True, exist_ok=out is not None or is_unbegun(path))
    return RunFolder(path, _take_lock(path))


def proposed(runs: Path, strategy: str, digest: str) -> Path:
    """An unused folder for a run without a name: `runs/MMDD-HHMM-strategy-hash`."""
    return _free(runs, f"{datetime.now():%m%d-%H%M}-{re.sub(r'[^A-Za-z0-9_.+-]', '_', strategy)}-{digest[:4]}")


def named(runs: Path, name: str) -> Path:
    """The folder of `--name`. Raises ConfigError if the name is not valid."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} is not a folder name", mend="use letters, digits and . _ + -, e.g. pilot-2")
    return runs / name


def hold(path: Path) -> RunFolder:
    """Lock any folder like a run folder; creates it if missing. Raises FolderError."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, _take_lock(path))


def reopen(path: Path) -> RunFolder:
    """Lock an existing run folder. Raises FolderError if it is none, or if another process holds its lock."""
    info(path)
    return RunFolder(path, _take_lock(path))


def info(path: Path) -> dict[str, Any]:
    """run.json of any run folder."""
    return ledger.info(path)


def state(path: Path) -> str:
    """`running`, `stopped`, `failed` or `done`; `stopped` if its process was killed while run.json says `running`."""
    recorded = str(info(path).get("state", "stopped"))
    return "stopped" if recorded == "running" and not is_held(path) else recorded


def is_on_devices(path: Path) -> bool:
    """Whether a run used devices, whose data its folder does not describe."""
    with suppress(OSError, ValueError, AttributeError):
        partition = strict_json.mapping((path / "partition.json").read_bytes())
        return bool(partition.get("recipe", {}).get("name") == "devices")
    return False


def is_held(path: Path) -> bool:
    """Whether a living process has the lock."""
    try:
        return locks.is_held(path / _LOCK)
    except OSError:  # another user's folder, which we may only read
        return _is_alive(_recorded_holder(path))


def is_unbegun(path: Path) -> bool:
    """Whether a run was killed here before it began: then the folder counts as empty."""
    with suppress(OSError):
        names = {file.name for file in path.iterdir()}
        return _LOCK in names and names <= _FIRST and not is_held(path)
    return False


def find(runs: Path, name: str | Path) -> Path:
    """Find a run folder by path, by id below `runs`, or by the beginning of an id. Raises FolderError."""
    for path in (Path(name), runs / name):
        if (path / "run.json").exists():
            return path
    for path in (Path(name), runs / name):
        if is_unbegun(path):
            what = f"{path} holds a run that was killed before it began"
            again = f"fedkd run {path / 'config.yaml'}" if (path / "config.yaml").exists() else "fedkd run"
            raise FolderError(what, mend=f"start it again, the name is free: {again} --name {path.name}")
    matches = [path for path in listed(runs) if path.name.startswith(str(name))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = ", ".join(path.name for path in matches[:5])
        raise FolderError(f"'{name}' may be {choices}", mend="write more of the name")
    raise FolderError(f"there is no run '{name}'", where=f"in {runs}", mend="fedkd list runs shows all runs")


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the arguments of `resume`: the run's name, if any, and overrides `key=value`. Raises ConfigError."""
    names = [argument for argument in arguments if "=" not in argument]
    if len(names) > 1:
        raise ConfigError(f"'{names[1]}' is one run too many", where="command line", mend="name one run")
    return names[0] if names else None, [argument for argument in arguments if "=" in argument]


def listed(runs: Path) -> list[Path]:
    """All run folders below `runs`, oldest first."""

    def age(path: Path) -> tuple[str, str]:
        with suppress(FolderError):  # damaged run.json
            return str(info(path).get("created", "")), path.name
        return "", path.name

    return sorted((file.parent for file in runs.glob("*/run.json")), key=age)


def environment() -> dict[str, Any]:
    """Facts about the machine and its software; none of them may change a result."""
    packages = {package: _version(package) for package in _PACKAGES}
    return {
        "versions": {"fedkd": fedkd.__version__, "python": platform.python_version(), **packages},
        "git": provenance.commit(),
        "code": provenance.everything(),
        "deciding_code": provenance.decisive(),
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing files into errors that tell the user what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK:
            resume = f", then: fedkd resume {path}" if (path / "run.json").exists() else ""
            mend = f"everything written before is kept; free some space{resume}"
            raise FolderError(FULL, where=str(path), mend=mend) from error
        if error.errno in _FORBIDDEN:
            mend = "change its owner or rights, or choose --runs DIR"
            raise FolderError("it is not writable", where=str(path), mend=mend) from error
        if isinstance(error, FileExistsError | NotADirectoryError):
            mend = "choose another --name, --out or --runs"
            raise FolderError("a file or folder is in the way", where=str(error.filename or path), mend=mend) from error
        what = f"cannot write: {error.strerror or error}"
        raise FolderError(what, where=str(path), mend="choose --runs DIR") from error


def _refuse_used(path: Path, mend: str) -> None:
    if (path / "run.json").exists():
        if is_held(path):
            raise _in_use(path)
        status = state(path)
        resume = "" if status == "done" else f", or continue it: fedkd resume {path}"
        raise FolderError(f"{path} holds a run that is {status}; it is never overwritten", mend=mend + resume)
    if path.is_dir() and any(path.iterdir()) and not is_unbegun(path):
        raise FolderError(f"{path} exists and is not empty", mend=mend)


def _free(runs: Path, name: str) -> Path:
    """`name`, or `name-2` and so on: two runs of one configuration may start in the same minute."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(runs / free for free in names if not (runs / free).exists())


def _take_lock(path: Path) -> "Lock":
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%H:%M}"}
    try:
        lock = locks.take(path / _LOCK, json.dumps(owner).encode())
    except OSError as error:
        if error.errno in _UNLOCKABLE:
            what = f"cannot be locked: {error.strerror}"
            raise FolderError(what, where=str(path), mend="put runs on a local disk") from error
        with writing(path):
            raise
    if lock is None:
        raise _in_use(path)
    return lock


def holder(path: Path) -> tuple[int, str] | None:
    """The process that holds the lock, as an id and as text; None if there is none, or it is unknown."""
    owner = _recorded_holder(path) if is_held(path) else {}
    with suppress(ValueError, KeyError, TypeError):
        return int(owner["pid"]), f"process {owner['pid']} on host {owner['host']} since {owner['since']}"
    return None


def _recorded_holder(path: Path) -> Mapping[str, Any]:
    """Process, host and time that the last holder wrote into the lock."""
    with suppress(OSError, ValueError):
        return strict_json.mapping(locks.text(path / _LOCK))
    return {}


def _is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether the process still runs; a process of another machine counts as alive."""
    import psutil

    with suppress(ValueError, TypeError):
        return owner.get("host") != socket.gethostname() or psutil.pid_exists(int(owner["pid"]))
    return True


def _in_use(path: Path) -> FolderError:
    owner = holder(path)
    return FolderError(f"{path} is in use by {owner[1] if owner else 'another process'}", mend="Wait, or choose --name")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


SCHEMAS = {"schema": 1, "rows": ledger.SCHEMA}  # of run.json and of the ledger's rows
