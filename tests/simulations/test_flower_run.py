"""The app as users start it: `flwr run` in a process of its own, on a SuperLink of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkd.configuration import compose
from simulations.run import runs
from simulations.run.options import Options

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
OVERRIDES = "clients=3 rounds=2 train.steps=2 strategy.generator_steps=2 evaluate.probe=8"

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the checkout: flwr bundles it"),
    pytest.mark.skipif(not (BIN / "flower-superlink").exists(), reason="Flower's commands are not installed"),
]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of Flower's processes: nothing outside `tmp_path`, nothing downloaded, nobody told."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "RAY_ADDRESS"}}
    return {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_COLOR": "1",
    }


@pytest.fixture
def superlink(tmp_path: Path, env: dict[str, str]) -> Iterator[str]:
    """The connection to a SuperLink that lives as long as the test; `flwr run .` alone starts one that stays."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [BIN / command[0], *command[1:]], env=env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(port, process)
        yield "test"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the SuperLink does not answer")


def test_flwr_run_writes_the_ledger_of_fedkd_run(tmp_path: Path, env: dict[str, str], superlink: str) -> None:
    nodes = "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=1"  # one worker: torch is imported once
    given = f'overrides="{OVERRIDES}" runs="{tmp_path / "flower"}" name="a"'
    command = [BIN / "flwr", "run", ROOT, superlink, "--stream", "--federation-config", nodes, "-c", given]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    log = done.stdout + done.stderr
    assert (tmp_path / "flower/a/summary.json").exists(), log

    resolved = compose.resolve([*OVERRIDES.split(), "engine=inline"])
    runs.start(resolved, runs=tmp_path / "inline", name="a", options=Options(quiet=True))
    for file in ("metrics.jsonl", "clients.jsonl", "partition.json"):
        assert (tmp_path / "flower/a" / file).read_bytes() == (tmp_path / "inline/a" / file).read_bytes(), file
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
