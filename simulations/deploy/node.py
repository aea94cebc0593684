"""The ClientApp: on a device it hands each message to a resident worker, which has torch and the run's code loaded.

A SuperNode starts one process per message. That process does not import torch: it finds or starts the worker and passes
the message on. The worker runs the same copy of the code and ends with its SuperNode. In Flower's simulation the
processes stay alive, so they answer themselves.
"""

import fcntl
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto

from simulations.system import scratch

START_SECONDS = 180.0  # to import torch: 2 s on a laptop, a minute on a small device
_ROOT = Path(__file__).parents[2]
_LONGEST = 1 << 31  # bytes of a message: Flower's own limit


def app(answer: Callable[[str, Message, Context], Message]) -> ClientApp:
    """A ClientApp that answers every message with one function; its first argument is `query`, or `work` for a job."""
    client = ClientApp()
    client.query()(partial(answer, "query"))
    client.train()(partial(answer, "work"))
    client.evaluate()(partial(answer, "work"))
    return client


def _pass_on(kind: str, message: Message, context: Context) -> Message:
    request = {
        "kind": kind,
        "node_config": dict(context.node_config),
        "run_config": dict(context.run_config),
        "run_id": context.run_id,
    }
    owner = [str(context.node_config[key]) for key in ("kit", "data", "state") if key in context.node_config]
    if not owner:
        return Message(respond(request, message.content), reply_to=message)
    with _connected("\n".join(owner)) as worker:
        worker.send_bytes(json.dumps(request).encode())
        worker.send_bytes(encode(message.content))
        return Message(decode(receive(worker)), reply_to=message)


client_app = app(_pass_on)


def encode(content: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(content).SerializeToString())


def decode(data: bytes) -> RecordDict:
    proto = Proto()
    proto.ParseFromString(data)
    return recorddict_from_proto(proto)


def receive(connection: Connection) -> bytes:
    """Receive one message. Raises ConnectionError if the other end is gone, or if the message is too long."""
    try:
        return connection.recv_bytes(_LONGEST)
    except (EOFError, OSError) as error:
        raise ConnectionError("the device's worker has ended; see its log") from error


@contextmanager
def _connected(owner: str) -> Iterator[Connection]:
    """A connection to the worker of `owner`; starts one if there is none."""
    folder = _socket_folder(owner)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two simultaneous messages start only one worker
        worker = _reach(folder / "socket") or _started(folder / "socket")
    with worker:
        yield worker


def _socket_folder(owner: str) -> Path:
    """A private folder for the socket, with a short path."""
    digest = hashlib.sha256(f"{owner}\n{_ROOT}".encode()).hexdigest()[:16]
    name = f"fedkd-{os.getuid()}-{digest}"
    folder = scratch.place(f"{name}/socket", first=os.environ.get("XDG_RUNTIME_DIR")) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to somebody else: remove it")
    return folder


def _reach(address: Path) -> Connection | None:
    worker = socket.socket(socket.AF_UNIX)
    try:
        worker.connect(str(address))
    except OSError:
        worker.close()
        return None
    return Connection(worker.detach())


def _started(address: Path) -> Connection:
    address.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "simulations.deploy.worker", str(address), str(os.getppid())]
    process = subprocess.Popen(command, env=env, cwd=_ROOT, stdin=subprocess.DEVNULL)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if worker := _reach(address):
            return worker
        if process.poll() is not None:
            raise ChildProcessError(f"the device's worker has ended with code {process.returncode}; see its log")
        time.sleep(0.05)
    process.kill()
    raise TimeoutError(f"the device's worker has not started within {START_SECONDS:g} s")


def respond(request: dict[str, Any], content: RecordDict) -> RecordDict:
    """Answer a message in the worker. Imports torch."""
    from simulations.deploy import answer

    configs = request["node_config"], request["run_config"]
    return answer.respond(request["kind"], content, *configs, run_id=int(request["run_id"]))
