"""The light ClientApp and the resident worker behind it: messages over a socket that is ours alone."""

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict

from simulations.deploy import node, processes, worker

CONTENT = RecordDict({"job": ConfigRecord({"round": 3, "words": ["a", "b"]})})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    sender, receiver = socket.socketpair()
    with sender, Connection(receiver.detach()) as connection:
        yield sender, connection


def test_a_message_comes_out_as_it_went_in(pair: tuple[socket.socket, Connection]) -> None:
    data = bytes(range(256)) * 10_000  # more than a socket takes at once
    with Connection(pair[0].detach()) as writer:
        sender = threading.Thread(target=writer.send_bytes, args=(data,))
        sender.start()
        assert node.receive(pair[1]) == data
        sender.join()


def test_records_survive_the_way() -> None:
    back = node.decode(node.encode(CONTENT))
    assert dict(back["job"]) == {"round": 3, "words": ["a", "b"]}


LONG = (-1).to_bytes(4, "big", signed=True) + (1 << 40).to_bytes(8, "big")  # a length of 8 bytes follows


@pytest.mark.parametrize("sent", [b"", b"\x05", (9).to_bytes(4, "big") + b"half", LONG])
def test_a_message_that_breaks_off_or_is_absurd_fails(pair: tuple[socket.socket, Connection], sent: bytes) -> None:
    pair[0].sendall(sent)
    pair[0].close()
    with pytest.raises(ConnectionError):
        node.receive(pair[1])


def test_the_socket_lies_in_a_folder_of_ours(tmp_path: Path) -> None:
    place = node._socket_folder("kit")
    assert place.parent == tmp_path
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert node._socket_folder("kit") == place
    assert node._socket_folder("another kit") != place


def test_a_folder_that_others_may_write_in_is_refused() -> None:
    node._socket_folder("kit").chmod(0o777)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        node._socket_folder("kit")


def test_the_app_without_torch() -> None:
    code = "import sys, simulations.deploy.node; sys.exit('torch' in sys.modules)"
    root = Path(node.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_worker_answers_survives_nonsense_and_ends_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "respond", lambda asked, content: RecordDict({"said": ConfigRecord({"n": asked["n"]})}))
    monkeypatch.setattr(worker, "POLL", 0.05)
    monkeypatch.setattr(worker, "IDLE_SECONDS", 1.5)
    address = tmp_path / "socket"
    serving = threading.Thread(target=worker.main, args=(address, os.getpid()))
    serving.start()
    try:
        with reach(address) as nonsense:
            os.write(nonsense.fileno(), b"not a message")
        with reach(address) as asking:
            asking.send_bytes(b'{"n": 7}')
            asking.send_bytes(node.encode(CONTENT))
            assert dict(node.decode(node.receive(asking))["said"]) == {"n": 7}
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
    finally:
        serving.join(20)  # nothing comes any more: it gives its memory back
    assert not serving.is_alive()


def reach(address: Path) -> Connection:
    found: list[Connection] = []

    def connected() -> bool:
        worker_end = node._reach(address)
        found.extend([worker_end] if worker_end else [])
        return bool(found)

    import time

    end = time.monotonic() + 60  # a worker imports torch first: 10 s were too few beside two busy processes
    while not connected():
        assert time.monotonic() < end
        time.sleep(0.02)
    return found[0]


def test_a_worker_ends_when_its_supernode_is_gone(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    root = Path(node.__file__).parents[2]
    command = [sys.executable, "-m", "simulations.deploy.worker", str(tmp_path / "socket"), str(parent.pid)]
    child = subprocess.Popen(command, cwd=root)
    try:
        with reach(tmp_path / "socket"):
            pass
        parent.kill()
        parent.wait()
        assert child.wait(20) == 0
    finally:
        for process in (child, parent):
            process.kill()
            process.wait()
    assert processes.born(child.pid) is None
