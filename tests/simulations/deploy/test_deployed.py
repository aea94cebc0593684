"""Real processes on loopback: a SuperLink with TLS, three devices with keys, runs, and what kills them.

One deployment for the module: Flower's programs take seconds to start. Every process is ended by its id.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkd.configuration import compose
from fedkd.errors import FedkdError
from simulations.deploy import certificates, client, demo, init, kit, processes, server, submit
from simulations.deploy.manifest import Deployment
from simulations.run import runs
from simulations.run.options import Deploy, Options
from simulations.system import redacted

ROOT = Path(__file__).parents[3]
WORDS = ("proxy=held-out", "proxy.size=40", "train.steps=2", "evaluate.probe=8", "evaluate.common=20")
STRATEGIES = {  # FedAvg is started by Flower's own command below
    "fedgen": ("rounds=2", "evaluate.every=2", "strategy.generator_steps=2"),
    "knfu": ("rounds=1",),
}
QUIET = Options(quiet=True)

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (Path(sys.executable).parent / "flower-superlink").exists(), reason="Flower's commands are not installed"
    ),
]


class Processes:
    """`fedkd deploy` commands as users start them, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *args: str | Path) -> Path:
        """Start one; its output goes to the file that comes back."""
        out = self.folder / f"{name}.out"
        with out.open("wb") as file:
            self.started[name] = subprocess.Popen(
                [sys.executable, "-m", "simulations.cli", "deploy", *map(str, args)],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return out

    def until(self, name: str, text: str, seconds: float = 120.0) -> None:
        """Wait for a text in its output."""
        out = self.folder / f"{name}.out"
        wait(lambda: text in out.read_text() or self.started[name].poll() is not None, seconds, out)
        assert text in out.read_text(), out.read_text()

    def end(self) -> None:
        for process in self.started.values():
            if process.poll() is None:
                process.terminate()
        for process in self.started.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait(done: Callable[[], object], seconds: float, log: Path | None = None) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {log.read_text() if log else ''}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    found = Processes(tmp_path_factory.mktemp("deployed"))
    yield found
    found.end()
    assert not left(str(found.folder))


@pytest.fixture(scope="module")
def fl(started: Processes) -> Deployment:
    """A deployment that serves, with three devices that have joined."""
    folder = started.folder / "fl"
    asked = {"address": "127.0.0.1", "port": processes.free_port(), "devices": "3"}
    found = init.make(Deploy(action="init", arguments=(str(folder), *WORDS), **asked))
    demo.share(found)
    started.start("server", "server", folder)
    started.until("server", "Ctrl-C stops it")
    for device in found.devices:
        started.start(device.name, "client", folder, "--name", device.name, "--data", found.kit(device.name) / "data")
    for device in found.devices:
        started.until(device.name, "has joined")
    return found


def left(text: str) -> list[str]:
    """Processes whose command line has a text in it; pytest's own does not count."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line and int(place.parent.name) != os.getpid():
                found.append(line)
    return found


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    # Accuracy on one's own labels needs everybody's label distribution, which devices do not give away.
    return [{key: value for key, value in row.items() if key != "local_accuracy"} for row in found]


def simulated(found: Deployment, words: tuple[str, ...], folder: Path) -> Path:
    resolved = compose.resolve([*found.run_overrides(), *words, "engine=inline"])
    runs.start(resolved, runs=folder, name="run", options=QUIET)
    return folder / "run"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_devices_write_the_ledger_of_a_simulation(fl: Deployment, tmp_path: Path, strategy: str) -> None:
    words = (f"strategy={strategy}", *STRATEGIES[strategy])
    found = submit.start(fl, words, dataclasses.replace(QUIET, name=strategy))
    assert found["status"] == "done"
    command = json.loads((fl.runs / strategy / "run.json").read_text())["command"]
    assert command == redacted.command(["fedkd", *sys.argv[1:]])  # not that of Flower's process, with its token
    wanted = simulated(fl, words, tmp_path)
    assert rows(fl.runs / strategy) == rows(wanted)
    assert rows(fl.runs / strategy, "clients.jsonl") == rows(wanted, "clients.jsonl")


def test_flowers_own_command_does_as_well(fl: Deployment, tmp_path: Path) -> None:
    words = (*fl.run_overrides(), "strategy=fedavg", "rounds=1")
    overrides = " ".join(words)
    given = f'devices=true overrides="{overrides}" runs="{tmp_path}" name="by-hand"'
    command = ["flwr", "run", str(ROOT), server.CONNECTION, "-c", given, "--stream"]
    done = processes.run(command, processes.environment(fl.flwr_home), seconds=300)
    assert (tmp_path / "by-hand" / "summary.json").exists(), done.stdout + done.stderr
    wanted = simulated(fl, ("strategy=fedavg", "rounds=1"), tmp_path / "simulated")
    assert rows(tmp_path / "by-hand") == rows(wanted)


def test_an_unknown_key_and_a_second_device_of_one_identity_are_refused(fl: Deployment, tmp_path: Path) -> None:
    said: list[str] = []
    for name, is_stranger in (("stranger", True), ("twin", False)):
        copy = tmp_path / name
        shutil.copytree(fl.kit("edge-1"), copy, ignore=shutil.ignore_patterns("state"))
        if is_stranger:
            (copy / "node_key").write_bytes(certificates.node_key("stranger").private.data)
        with pytest.raises(FedkdError, match="does not accept this device's key") as caught:
            client.main(kit.Kit.load(copy), copy / "data", said.append)
        assert caught.value.code == 7


def test_a_port_that_is_taken(fl: Deployment) -> None:
    with pytest.raises(FedkdError, match=f"port {fl.port} is taken") as caught:
        server.main(fl, print)
    assert caught.value.code == 7


def test_a_mixture_is_refused_where_weights_are_averaged(fl: Deployment) -> None:
    with pytest.raises(FedkdError, match="averages weights"):
        submit.start(fl, ("strategy=fedavg", "students=[mlp, lenet5, mlp]"), QUIET)


def test_a_run_survives_the_death_of_the_server_and_of_a_device(fl: Deployment, started: Processes) -> None:
    name, folder = "killed", fl.runs / "killed"
    words = ("strategy=fedavg", "rounds=3", "evaluate.every=3", "quorum=2", "engine.deadline=45")
    started.start("run", "run", fl.folder, *words, "--name", name)
    wait(lambda: (folder / "metrics.jsonl").exists() and rows(folder), 120, started.folder / "run.out")

    pid = processes.read_marker(server.marker(fl.folder))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)  # between rounds, or in the second: what was committed counts
    assert started.started["run"].wait(120) != 0
    played = len(rows(folder))
    assert started.started["server"].wait(60) == 7
    started.start("server", "server", fl.folder)
    started.until("server", "Ctrl-C stops it")

    started.start("run", "run", fl.folder, name, "--resume")
    wait(lambda: any("has joined" in str(row) for row in events(folder, "resume")), 120, started.folder / "run.out")
    pid = processes.read_marker(client.marker(fl.load_kit("edge-3")))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert started.started["run"].wait(300) == 0, (started.folder / "run.out").read_text()

    found = [row["clients"]["ok"] for row in rows(folder)]
    assert len(found) == 3
    assert found[:played] == [3] * played
    assert found[-1] == 2
    failures = [row for row in events(folder) if row["event"] == "failure"]
    assert {row["client"] for row in failures} == {2}
    assert all("edge-3" in row["what"] for row in failures)


def events(folder: Path, since: str = "start") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    begins = [number for number, row in enumerate(found) if row["event"] == since]
    return found[max(0, begins[-1] - 4) :] if begins else []


def test_a_demo_that_is_interrupted_leaves_nothing_running(tmp_path: Path) -> None:
    started = Processes(tmp_path)
    environment = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(tmp_path)
    try:
        started.start("demo", "demo")
        started.until("demo", "edge-1 has joined")
        started.started["demo"].send_signal(signal.SIGINT)
        assert started.started["demo"].wait(60) == 130
    finally:
        os.environ.pop("TMPDIR") if environment is None else os.environ.__setitem__("TMPDIR", environment)
        started.end()
    assert left(str(tmp_path)) == []
    assert not list(tmp_path.glob("fedkd-demo-*"))
