"""Starts and stops Ray: a private instance on loopback with a token, or a connection to an existing cluster."""

import functools
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from fedkd.errors import EngineError
from simulations.system import scratch

STORE_FLOOR = 256 << 20  # bytes of Ray's object store besides the samples: payloads and answers; it spills to disk
CONNECT_SECONDS = 5.0
SOCKET = "r/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"  # the longest that Ray makes in its folder

_VITAL = ("raylet", "gcs_server")  # Ray cannot run anything without these
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a FutureWarning
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # keeps its daemons' logs off our stdout
}
_PRIVATE = _QUIET | {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray replaces 127.0.0.1 with an external address
    "OMP_NUM_THREADS": "1",  # inherited by the workers
}


@contextmanager
def session(*, workers: int | None, address: str | None, data_bytes: int) -> Iterator[int]:
    """A connected Ray; yields the number of workers it has room for, at most `workers`.

    One thread must enter and leave it, and live until then: Ray's head process ends with the thread that started it.
    Raises EngineError if Ray cannot start, or if no folder is short enough for its sockets.
    """
    with _environment(_QUIET):  # Ray reads it when it is first imported
        ray = _import()
    if ray.is_initialized():
        raise EngineError("Ray already runs in this process", mend="close the other engine first")
    if address is not None:
        with _joined(ray, address):
            yield _room(ray, workers)
        return
    with scratch.folder("ray", SOCKET) as folder:
        try:
            # Normal priority for Ray's workers (its default is niceness 15), unless the user has chosen one.
            niceness = {"RAY_worker_niceness": os.environ.get("RAY_worker_niceness", "0")}  # noqa: SIM112
            with _environment(_PRIVATE | niceness | _token()), _loopback(ray):
                _reread_token(ray)
                _init(ray, workers or num_cores(), str(folder), data_bytes)
            yield workers or num_cores()
        finally:
            ray.shutdown()


def died() -> str:
    """The processes of our private Ray that have ended, as text; empty if none has. Costs microseconds.

    Ray would silently end this whole process some seconds later.
    """
    import ray

    node = ray._private.worker._global_node
    dead: list[Any] = [] if node is None else node.dead_processes()
    return ", ".join(f"its {name} ended with code {process.poll()}" for name, process in dead if name in _VITAL)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _room(ray: Any, workers: int | None) -> int:
    room = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return min(workers or room, room)


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        mend = "pip install ray, or use engine=inline"
        raise EngineError(f"Ray cannot be imported: {error}", mend=mend) from error
    return ray


def _init(ray: Any, workers: int, folder: str, data_bytes: int) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Twice: the next run's site arrives before the last one's is freed.
            object_store_memory=2 * data_bytes + STORE_FLOOR,
            _temp_dir=os.path.join(folder, "r"),  # inside ours, because Ray makes its folder readable by everybody
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, OSError, ValueError, its own
        mend = "use engine=inline; `fedkd doctor` checks memory, disk and ports"
        raise EngineError(f"Ray does not start: {type(error).__name__}: {error}", mend=mend) from error


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    _check_listening(address)
    try:
        own = _loopback(ray) if _is_private(ray, address) else nullcontext()
        with _environment(_QUIET), own:
            _reread_token(ray)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # as above
        mend = "start it with `ray start --head`, with the same Python and packages as here"
        raise EngineError(f"cannot join Ray: {error}", where=f"engine.address = {address}", mend=mend) from error
    try:
        yield
    finally:
        ray.shutdown()  # only disconnects: the cluster and other work on it stay


def _check_listening(address: str) -> None:
    """Checked here because Ray's own attempt takes a minute and then ends this process."""
    where = f"engine.address = {address}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise EngineError("the address is not HOST:PORT", where=where, mend="give what `ray start --head` printed")
    try:
        _connect(host, port)
    except (OSError, OverflowError) as error:
        mend = "start the cluster with `ray start --head`"
        raise EngineError(f"nothing answers: {error}", where=where, mend=mend) from error


def _connect(host: str, port: str) -> None:
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _is_private(ray: Any, address: str) -> bool:
    """Whether a cluster listens on loopback only. Ray would wait forever at this machine's external address."""
    host, _, port = address.rpartition(":")
    if host not in {"127.0.0.1", "localhost"}:
        return False
    try:
        _connect(ray.util.get_node_ip_address(), port)
    except OSError:
        return True
    return False


def _token() -> dict[str, str]:
    """A token that every connection needs. A user's own choice of Ray's authentication stays."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _process_token()}


def _reread_token(ray: Any) -> None:
    """Make Ray read the token again: it reads it once, on import, perhaps for an earlier session."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Keep 127.0.0.1: Ray read RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER on import, which decides whether it is replaced."""
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@functools.cache
def _process_token() -> str:
    return secrets.token_hex(32)  # one per process, because Ray reads it once


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in before:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
