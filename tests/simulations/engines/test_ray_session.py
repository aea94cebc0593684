"""One pool of one worker that nobody else uses: how it starts, what it opens, what it leaves."""

import contextlib
import os
import socket
import stat
import sys
import tempfile
from pathlib import Path

import pytest
import tiny

from fedkd.errors import EngineError
from simulations.engines import ray_session
from simulations.engines.inline import Inline
from simulations.engines.ray_pool import RayPool

ray = pytest.importorskip("ray")
from ray._raylet import AuthenticationMode, get_authentication_mode  # noqa: E402  # where there is one


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def tmp_root(tmp_path_factory, monkeypatch):
    """Another folder for temporary files: short, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def children(pid):
    """Process ids of all descendants that still run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            child = int(file.parent.name)
            found += [child, *children(child)]
    return found


@pytest.fixture
def pool(site, tmp_root):
    ray.cloudpickle.register_pickle_by_value(tiny)  # a worker cannot import it
    with contextlib.closing(RayPool(site, workers=1)) as pool:
        yield pool


def test_a_private_pool_of_one_listens_on_loopback_gives_the_inline_bytes_and_leaves_nothing_behind(
    pool, site, problem, tmp_root
):
    processes, environment, sockets = set(children(os.getpid())), set(os.environ), listening()
    jobs = [tiny.job(problem, client=client) for client in range(3)]
    found = {reply.client: tiny.lasting(reply) for reply in pool.run(jobs)}
    assert found == {reply.client: tiny.lasting(reply) for reply in Inline(site).run(jobs)}
    assert set(os.environ) - environment <= {"PYTHONBREAKPOINT"}, "which Ray itself sets, and not the token"
    opened = listening() - sockets
    assert {host for host, _ in opened} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert opened or sys.platform != "linux", "Ray listens somewhere"
    assert get_authentication_mode() == AuthenticationMode.TOKEN
    (folder,) = tmp_root.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    facts = pool.facts()
    assert facts["workers"] == 1
    pool.close()
    pool.close()
    assert list(tmp_root.iterdir()) == []
    assert set(children(os.getpid())) <= processes
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert pool.facts() == facts, "what run.json records is known after the end"
    with pytest.raises(EngineError, match="closed"):
        list(pool.run(jobs))


def test_when_ray_itself_dies_the_jobs_end_in_an_error_and_nothing_is_left_behind(pool, problem, tmp_root):
    jobs = [tiny.job(problem, client=client) for client in range(3)]
    results = pool.run(jobs)
    next(results)
    (raylet,) = ray._private.worker._global_node.all_processes["raylet"]
    raylet.process.kill()
    with pytest.raises(EngineError, match=r"Ray has died: its raylet ended with code -9") as caught:
        play_on(pool, results, jobs)
    assert caught.value.code == 3
    assert "fedkd resume" in caught.value.mend
    with pytest.raises(EngineError, match="Ray has died"):
        list(pool.run(jobs))
    pool.close()
    assert not ray.is_initialized()
    assert list(tmp_root.iterdir()) == []


def play_on(pool, results, jobs):
    """Round after round: answers that had come already count."""
    while True:
        list(results)
        results = pool.run(jobs)


def test_a_pool_that_is_closed_before_it_is_up_comes_down(pool, tmp_root):
    pool.start()
    pool.close()
    assert not ray.is_initialized()
    assert list(tmp_root.iterdir()) == []


def test_ray_that_does_not_start_is_an_engine_error_with_a_mend(pool, problem, monkeypatch, tmp_root):
    def fail(**_):
        raise RuntimeError("no room in /dev/shm")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(EngineError, match="Ray does not start: RuntimeError: no room in /dev/shm") as caught:
        list(pool.run([tiny.job(problem)]))
    assert caught.value.code == 3
    assert "engine=inline" in str(caught.value)
    assert list(tmp_root.iterdir()) == []


def test_an_address_where_nobody_listens_is_an_engine_error(site, problem, free_port):
    pool = RayPool(site, workers=1, address=f"127.0.0.1:{free_port}")
    with pytest.raises(EngineError, match=f"nothing answers.*{free_port}"):
        list(pool.run([tiny.job(problem)]))
    pool.close()


@pytest.mark.parametrize("address", ["somewhere", "host:", "host:port"])
def test_an_address_without_port_is_an_engine_error(address):
    with (
        pytest.raises(EngineError, match="not HOST:PORT"),
        ray_session.session(workers=1, address=address, data_bytes=0),
    ):
        pass


def listening():
    """(host, port) of every listening TCP socket of this machine; none where there is no /proc/net."""
    found = set()
    if not Path("/proc/net/tcp").exists():
        return found
    for name, size in (("tcp", 8), ("tcp6", 32)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                host, port = local.split(":")
                found.add((_ip(host, size), int(port, 16)))
    return found


def _ip(text, size):
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, size, 8)]
    raw = b"".join(words)
    if len(raw) == 4:
        return socket.inet_ntop(socket.AF_INET, raw)
    return socket.inet_ntop(socket.AF_INET6, raw)
