"""`fedkd deploy stop`: ends processes on this machine: saves the run, then ends devices, then the SuperLink."""

import time
from collections.abc import Callable
from pathlib import Path

from simulations.deploy import client, kit, processes, server, submit
from simulations.deploy.kit import Kit
from simulations.deploy.manifest import Deployment
from simulations.run import run_folder

RUN_SECONDS = 60.0  # a run's time to save its state

Say = Callable[[str], None]


def all_processes(deployment: Deployment, say: Say) -> int:
    """End all processes of a deployment on this machine."""
    for folder in run_folder.listed(deployment.runs):
        if run_folder.holder(folder) is not None:
            _end_run(deployment, folder, say)
    for device in deployment.devices:
        if (deployment.kit(device.name) / kit.FILE).exists():
            _end(client.marker(deployment.load_kit(device.name)), device.name, say)
    if not _end(server.marker(deployment.folder), "superlink", say):
        say("no SuperLink of this deployment runs here")
    return 0


def supernode(device: Kit, say: Say) -> int:
    """End a device's SuperNode on this machine."""
    if not _end(client.marker(device), device.name, say):
        say(f"{device.name} does not run here")
    return 0


def _end_run(deployment: Deployment, folder: Path, say: Say) -> None:
    submit.stop(deployment, folder)
    end = time.monotonic() + RUN_SECONDS
    while run_folder.is_held(folder) and time.monotonic() < end:
        time.sleep(0.2)
    state = "still running" if run_folder.is_held(folder) else run_folder.state(folder)
    say(f"run {folder.name}: {state}")


def _end(marker: Path, name: str, say: Say) -> bool:
    pid = processes.read_marker(marker)
    marker.unlink(missing_ok=True)
    if pid is None:
        return False
    processes.end_group(pid)
    say(f"{name}: ended (process {pid})")
    return True
