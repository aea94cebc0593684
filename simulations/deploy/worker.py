"""A device's resident worker: answers messages one by one until its SuperNode ends, or until it has been idle for long.

python -m simulations.deploy.worker SOCKET PID        # ends when the process PID ends
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import RecordDict

from fedkd.engine import Failure
from simulations.deploy import (
    answer,  # noqa: F401  # imports torch, for seconds: now rather than with the first message
    node,
    processes,
)
from simulations.flower import codec

IDLE_SECONDS = 900.0  # then the worker ends, to free memory
POLL = 1.0


def main(address: Path, parent: int) -> None:
    """Serve at a socket until idle for IDLE_SECONDS."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        address.chmod(0o600)
        server.listen(16)
        server.settimeout(POLL)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        last = time.monotonic()
        while time.monotonic() - last < IDLE_SECONDS:
            with suppress(TimeoutError):
                with Connection(server.accept()[0].detach()) as connection:
                    _serve(connection)
                last = time.monotonic()


def _serve(connection: Connection) -> None:
    """Answer one message. Neither a lost peer nor an error in the message ends the worker."""
    try:
        request = json.loads(node.receive(connection))
        content = node.decode(node.receive(connection))
        connection.send_bytes(node.encode(_respond(request, content)))
    except OSError as error:
        print(f"worker  {type(error).__name__}: {error}", flush=True)


def _respond(request: dict[str, object], content: RecordDict) -> RecordDict:
    try:
        return node.respond(request, content)
    except Exception as error:  # noqa: BLE001  # the border: the run must learn of it and continue
        traceback.print_exc()  # stays on the device: a traceback may name files and values
        what = f"{type(error).__name__}: see the device's log"
        unknown = Failure(client=0, round=0, what=what, cause="raised")  # the engine fills in client and round
        return codec.encode_result(unknown)


def _end_with(parent: int) -> None:
    """End this process as soon as process `parent` has ended."""
    born = processes.born(parent)
    while born is not None and processes.born(parent) == born:
        time.sleep(POLL)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
