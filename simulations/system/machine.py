"""Memory: how much this process has used and may use, and the error when it was too little."""

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

        found = psutil.Process().memory_info()
        return int(getattr(found, "peak_wset", found.rss))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def available() -> int:
    """Free bytes: the machine's, or what is left in a control group if that is less."""
    import psutil

    left = [limit - used for limit, used, _ in _groups()]
    return max(0, min([psutil.virtual_memory().available, *left]))


def limits() -> str:
    """The limits on this process's memory, as text."""
    found = [f"{name} allows {limit / 1e6:.0f} MB" for limit, _, name in _groups()]
    if (most := _address_space()) is not None:
        found.append(f"ulimit -v allows {most / 1e6:.0f} MB of addresses")
    with suppress(ImportError):  # devices do without psutil
        import psutil

        machine = psutil.virtual_memory()
        found.append(f"the machine has {machine.total / 1e6:.0f} MB, {machine.available / 1e6:.0f} MB free")
    return ", ".join(found) or "no limit is known"


def is_shortage(error: BaseException | str) -> bool:
    """Whether an error, or its text, means that there was too little memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    said = str(error)
    return "MemoryError" in said or any(sign in said for sign in _SIGNS)


def explained(error: BaseException) -> BaseException:
    """The error; if memory ran out, a Shortage that names the limit, because the user can mend it."""
    if isinstance(error, FedkdError) or not isinstance(error, Exception) or not is_shortage(error):
        return error
    said = (str(error).splitlines() or [""])[0][:200]
    what = f"too little of it: {type(error).__name__}" + (f": {said}" if said else "")
    found = Shortage(what, where=limits(), mend=MEND)
    found.__cause__ = error
    return found


def _address_space() -> int | None:
    """Bytes of addresses that `ulimit -v` allows; None if it does not limit them."""
    if importlib.util.find_spec("resource") is None:
        return None
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if most == resource.RLIM_INFINITY else most


def _groups() -> list[tuple[int, int, str]]:
    """Control groups of this process that limit its memory (containers, systemd): limit, used, its file."""
    found = []
    for folder, most, used in _group_folders():
        with suppress(OSError, ValueError):
            limit = int((folder / most).read_text())  # v2 says `max` where there is none: a ValueError
            if limit < _UNLIMITED:
                found.append((limit, int((folder / used).read_text()), str(folder / most)))
    return found


def _group_folders() -> list[tuple[Path, str, str]]:
    """Folders of the control groups that this process is in, innermost first, with the names of their files."""
    found: list[tuple[Path, str, str]] = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top = _GROUPS / "memory" if kinds else _GROUPS
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            inner = Path(place.lstrip("/"))
            found += [(top / each, *names) for each in (inner, *inner.parents) if (top / each).is_dir()]
    return list(dict.fromkeys(found))
