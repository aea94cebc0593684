"""Memory: what this process has used and may use, and the error if it was too little."""

import errno
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

from fedkd.errors import EngineError, FedkdError

MEND = "raise that limit, end other programs, or use a smaller student, a smaller train.batch or fewer engine.workers"
_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # bytes: control groups write a number near the largest for no limit
# From the messages of torch's allocator, C++, thread creation and the library loader.
_SIGNS = ("allocate memory", "not enough memory", "bad_alloc", "start new thread", "failed to map segment")


class Shortage(EngineError):
    """Too little memory."""

    topic = "memory"


def peak() -> int:
    """Bytes: the peak memory of this process."""
    if importlib.util.find_spec("resource") is None:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def available() -> int:
    """Free bytes of the machine, or of a control group if that has less."""
    import psutil

    free = [limit - used for limit, used, _ in _groups()]
    return max(0, min([psutil.virtual_memory().available, *free]))


def limits() -> str:
    """The limits on this process's memory, as text."""
    texts = [f"{name} allows {limit / 1e6:.0f} MB" for limit, _, name in _groups()]
    if (limit := _address_space()) is not None:
        texts.append(f"ulimit -v allows {limit / 1e6:.0f} MB of addresses")
    with suppress(ImportError):  # devices do without psutil
        import psutil

        machine = psutil.virtual_memory()
        texts.append(f"the machine has {machine.total / 1e6:.0f} MB, {machine.available / 1e6:.0f} MB free")
    return ", ".join(texts) or "no limit is known"


def is_shortage(error: BaseException | str) -> bool:
    """Whether an error, or its text, means that there was too little memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(sign in str(error) for sign in ("MemoryError", *_SIGNS))


def explained(error: BaseException) -> BaseException:
    """The error, or a Shortage that names the limits if memory ran out, because the user can raise them."""
    if isinstance(error, FedkdError) or not isinstance(error, Exception) or not is_shortage(error):
        return error
    message = (str(error).splitlines() or [""])[0][:200]
    what = f"too little of it: {type(error).__name__}" + (f": {message}" if message else "")
    shortage = Shortage(what, where=limits(), mend=MEND)
    shortage.__cause__ = error
    return shortage


def _address_space() -> int | None:
    """Bytes of addresses that `ulimit -v` allows; None if it does not limit them."""
    if importlib.util.find_spec("resource") is None:
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def _groups() -> list[tuple[int, int, str]]:
    """Control groups of this process that limit its memory (containers, systemd): limit, used, its file."""
    groups = []
    for folder, limit_file, used_file in _group_folders():
        with suppress(OSError, ValueError):
            limit = int((folder / limit_file).read_text())  # v2 says `max` if there is none: a ValueError
            if limit < _UNLIMITED:
                groups.append((limit, int((folder / used_file).read_text()), str(folder / limit_file)))
    return groups


def _group_folders() -> list[tuple[Path, str, str]]:
    """The folders of this process's control groups, innermost first, with the names of their files."""
    folders: list[tuple[Path, str, str]] = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top = _GROUPS / "memory" if kinds else _GROUPS
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            inner = Path(path.lstrip("/"))
            folders += [(top / group, *names) for group in (inner, *inner.parents) if (top / group).is_dir()]
    return list(dict.fromkeys(folders))
