"""`fedkd doctor`: checks whether this machine can run experiments; one line per check, fast checks first."""

import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fedkd.config import DataConfig
from fedkd.data import sources
from fedkd.errors import DataError, EngineError
from simulations.engines import ray_session
from simulations.run.options import Options
from simulations.system import machine, operating_system, scratch, subprocesses

State = Literal["ok", "warn", "fail"]

FAILED = 3  # exit code: data or environment
OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 6)
FLOWER = "1.42"  # we use its internal interfaces, which change between minor versions
RAY_SECONDS = 120.0  # for Ray to start and answer; 5 to 10 s are usual, 30 on a busy machine
LITTLE_DISK, NO_DISK = 2e9, 2e8  # bytes for a hundred checkpoints of a small student; for one run
LITTLE_MEMORY, NO_MEMORY = 2e9, 5e8  # bytes for a driver and two workers; for a driver
LITTLE_SHARED = 3e8  # bytes of /dev/shm: with less, Ray's store is on disk
FLOWER_PORTS = (8000, 9094)  # of a SuperLink and of a SuperNode
_TRY_RAY = "from simulations.cli import doctor; print(doctor.start_ray())"


@dataclass(frozen=True)
class Check:
    """The result of one check; `mend` is empty if there is nothing to do."""

    name: str
    state: State
    what: str
    mend: str = ""


def main(options: Options) -> int:
    """Run all checks; returns 0, or 3 if one fails."""
    checks = []
    for check in look(options):
        checks.append(check)
        if not options.json and (check.state != "ok" or not options.quiet):
            print(_line(check), flush=True)
    worst = "fail" if any(check.state == "fail" for check in checks) else "ok"
    options.answer({"state": worst, "checks": list(map(asdict, checks))})
    return FAILED if worst == "fail" else 0


def look(options: Options) -> Iterator[Check]:
    """The results of the checks, as they end."""
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("python", python),
        ("system", system),
        ("flower", flower),
        ("cores", cores),
        ("memory", memory),
        ("shared memory", shared_memory),
        ("disk", lambda: disk(options.runs)),
        ("write rights", lambda: write_rights(options.runs)),
        ("temporary", temporary),
        ("network", network),
        ("torch", torch),
        ("torchvision", torchvision),
        ("gpu", gpu),
        ("data", data),
        ("ray", ray),
    )
    for name, check in checks:
        try:
            yield check()
        except Exception as error:  # noqa: BLE001  # the other checks still help
            yield Check(name, "fail", f"{type(error).__name__}: {error}", "see the message; reinstall what it names")


def python() -> Check:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "fail", version, "fedkd needs 3.11 or newer: make a new virtual environment")
    return Check("python", "ok", f"{version}, {platform.system()} {platform.machine()}")


def system() -> Check:
    if why := operating_system.missing():
        return Check("system", "warn", f"{why}: {operating_system.WITHOUT}", operating_system.MEND)
    if platform.system() != "Linux":
        what = f"{platform.system()}: fedkd is tested on Linux"
        return Check("system", "warn", what, "please report what does not work")
    return Check("system", "ok", "Linux")


def flower() -> Check:
    mend = f"pip install 'flwr[simulation]~={FLOWER}.0'; simulations of fedkd itself do without"
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        return Check("flower", "warn", "not installed", mend)
    if not version.startswith(f"{FLOWER}."):
        return Check("flower", "warn", f"{version}, fedkd is tested with {FLOWER}", mend)
    return Check("flower", "ok", version)


def cores() -> Check:
    usable, load = ray_session.num_cores(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    what = f"{usable} to use, load {load:.1f}"
    if load > usable:
        mend = "wait for the other programs: until then runs are slow and timings unreliable"
        return Check("cores", "warn", f"{what}: busy", mend)
    return Check("cores", "ok", what)


def memory() -> Check:
    available = machine.available()
    state: State = "fail" if available < NO_MEMORY else "warn" if available < LITTLE_MEMORY else "ok"
    mend = "" if state == "ok" else "end other programs, or use engine=inline (a worker takes about 0.4 GB)"
    return Check("memory", state, f"{available / 1e9:.1f} GB available", mend)


def shared_memory() -> Check:
    store = Path("/dev/shm")
    if not store.is_dir():
        return Check("shared memory", "ok", "Ray uses files on this system")
    free = shutil.disk_usage(store).free
    if free < LITTLE_SHARED:
        what = f"{free / 1e6:.0f} MB free in /dev/shm"
        return Check("shared memory", "warn", what, "Ray will be slow; in Docker start with --shm-size=1g")
    return Check("shared memory", "ok", f"{free / 1e9:.1f} GB free in /dev/shm")


def disk(runs: Path) -> Check:
    folder = _existing(runs)
    free = shutil.disk_usage(folder).free
    state: State = "fail" if free < NO_DISK else "warn" if free < LITTLE_DISK else "ok"
    mend = "" if state == "ok" else "make room, or choose another place with --runs DIR"
    return Check("disk", state, f"{free / 1e9:.1f} GB free in {folder}", mend)


def write_rights(runs: Path) -> Check:
    folder = _existing(runs)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("write rights", "fail", f"{folder}: {error.strerror}", "choose another place with --runs DIR")
    return Check("write rights", "ok", f"can write in {folder}")


def temporary() -> Check:
    """The folder for temporary files, where Ray makes its sockets."""
    own = tempfile.gettempdir()
    try:
        detour = scratch.detour("ray", ray_session.SOCKET)
    except EngineError as error:
        return Check("temporary", "fail", error.what, error.mend)
    if detour:
        return Check("temporary", "warn", f"Ray: {detour}", "no action needed, or set TMPDIR to a shorter path")
    return Check("temporary", "ok", own)


def network() -> Check:
    """Ray and Flower talk to their own processes over loopback."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        mend = "Ray and Flower need 127.0.0.1: check firewall and sandbox, or use engine=inline"
        return Check("network", "fail", f"loopback does not work: {error}", mend)
    if taken := [str(port) for port in FLOWER_PORTS if _is_taken(port)]:
        what = f"loopback works; in use already: port {', '.join(taken)}"
        mend = "Flower needs it: end the other program, or give fedkd deploy init another --port"
        return Check("network", "warn", what, mend)
    return Check("network", "ok", f"loopback works; Flower's ports {' and '.join(map(str, FLOWER_PORTS))} are free")


def torch() -> Check:
    import torch

    version, threads = torch.__version__, torch.get_num_threads()
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        return Check("torch", "fail", version, "pip install --upgrade torch torchvision: fedkd needs 2.6 or newer")
    if float(torch.ones(3, 3).mm(torch.ones(3, 1)).sum()) != 9:
        return Check("torch", "fail", f"{version} computes 3x3 by 3 wrongly", "reinstall torch for this processor")
    return Check("torch", "ok", f"{version}, {threads} threads (fedkd uses 1 per client)")


def torchvision() -> Check:
    """A torchvision made for another torch fails when it is imported or when an operator is first called."""
    mend = "pip install --upgrade torch torchvision: both must come from the same release"
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # noqa: BLE001  # ImportError, OSError, RuntimeError, AttributeError: all mean the same
        return Check("torchvision", "fail", f"does not fit torch: {type(error).__name__}: {error}", mend)
    return Check("torchvision", "ok", torchvision.__version__)


def gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", "ok", "none, none needed: fedkd trains on the CPU")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Check("gpu", "ok", f"{names}; fedkd trains on the CPU")


def data() -> Check:
    """Read every data set on disk, to find damaged files before a comparison does."""
    root, intact, damaged = sources.find_root(DataConfig()), [], []
    for name, source in sources.SOURCES.items():
        try:
            source.read(root)
            intact.append(name)
        except DataError as error:
            if not is_absence(error):
                damaged.append(error)
    what = f"{', '.join(intact) or 'none'} ({root})"
    if damaged:
        return Check("data", "fail", "; ".join(error.what for error in damaged), damaged[0].mend)
    if not root.path.is_dir() and root.chosen_by != "the default":
        return Check("data", "warn", f"{what}, which does not exist", "set FEDKD_DATA to the folder of the data sets")
    return Check("data", "ok", what)


def is_absence(error: DataError) -> bool:
    """Whether a data set is merely absent, which is no error."""
    return "not found" in error.what or "does not exist" in error.what


def ray() -> Check:
    """Start a private Ray with one worker, in a process that can be killed, and run one job there."""
    if operating_system.missing():
        return Check("ray", "ok", "not used on this system: runs use one core")
    if importlib.util.find_spec("ray") is None:
        return Check("ray", "warn", "not installed: runs use one core", "pip install ray")
    version = metadata.version("ray")
    try:
        seconds = float(subprocesses.python("-c", _TRY_RAY, timeout=RAY_SECONDS).split()[-1])
    except EngineError as error:
        mend = error.mend or "use engine=inline; or look at memory, /dev/shm and network above"
        return Check("ray", "fail", f"{version} does not start: {error.what}", mend)
    return Check("ray", "ok", f"{version}, a worker answered after {seconds:.1f} s")


def start_ray() -> float:
    """Seconds until a worker of a private Ray has done a job."""
    from fedkd.engine import Job
    from fedkd.payload import Payload
    from simulations.engines.choose import Echo
    from simulations.engines.ray_pool import RayPool

    start = time.perf_counter()
    pool = RayPool(Echo(), workers=1)
    try:
        list(pool.run([Job(task="train", client=0, round=1, payload=Payload())]))
        return time.perf_counter() - start
    finally:
        pool.close()


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _line(check: Check) -> str:
    mend = f"\n      {'':<14} {check.mend}" if check.mend else ""
    return f"{check.state:<5} {check.name:<14} {check.what}{mend}"
