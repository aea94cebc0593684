"""A cluster that was there before us, on loopback: joined, used, left as it was."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import tiny

from fedkd.engine import Reply
from fedkd.training.site import LocalSite
from simulations.engines.inline import Inline
from simulations.engines.ray_pool import RayPool

START_SECONDS = 90.0

pytestmark = pytest.mark.deployment


@pytest.fixture
def cluster() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`ray start --head` with one core, ended by its process id."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:  # short: paths of sockets
        program = Path(sys.executable).with_name("ray")
        options = ["--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
        options += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1"}
        silent = subprocess.DEVNULL
        head = subprocess.Popen(
            [str(program), "start", *options], env=environment, stdout=silent, stderr=silent, start_new_session=True
        )
        try:
            _wait_for(port, head)
            yield f"127.0.0.1:{port}", head
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGTERM)
            head.wait(30)


def _wait_for(port: int, head: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and head.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            time.sleep(3)  # it listens before it can be joined
            return
        time.sleep(0.2)
    pytest.fail("ray start --head does not come up")


def test_a_cluster_gives_the_inline_bytes_and_outlives_us(
    cluster: tuple[str, "subprocess.Popen[bytes]"], site: LocalSite
) -> None:
    address, head = cluster
    ray.cloudpickle.register_pickle_by_value(tiny)  # its workers cannot import it
    jobs = [tiny.job(site.problem, client=client) for client in range(3)]
    expected = {reply.client: tiny.lasting(reply) for reply in Inline(site).run(jobs) if isinstance(reply, Reply)}
    for _ in range(2):  # leaving it must not hinder the next
        with contextlib.closing(RayPool(site, workers=4, address=address)) as pool:
            found = {reply.client: tiny.lasting(reply) for reply in pool.run(jobs) if isinstance(reply, Reply)}
            assert pool.facts()["workers"] == 1, "as many as it has room for"
        assert found == expected
    assert head.poll() is None
