"""`fedkd deploy stop`: ends processes on this machine by id: the run in order, then devices, then the SuperLink."""

import time
from collections.abc import Callable
from pathlib import Path

from simulations.deploy import client, processes, server, submit
from simulations.deploy.kit import Kit
from simulations.deploy.plan import Deployment
from simulations.run import run_folder

RUN_SECONDS = 60.0  # for a run to save

Say = Callable[[str], None]


def deployment(plan: Deployment, say: Say) -> int:
    """End everything of a deployment that runs on this machine."""
    for folder in run_folder.listed(plan.runs):
        if run_folder.holder(folder) is not None:
            _end_run(plan, folder, say)
    for device in plan.devices:
        place = plan.kit(device.name)
        if (place / "node.yaml").exists():
            _end(client.marker(Kit.load(place)), device.name, say)
    if not _end(server.marker(plan.folder), "superlink", say):
        say("no SuperLink of this deployment runs here")
    return 0


def device(kit: Kit, say: Say) -> int:
    """End a device's SuperNode on this machine."""
    if not _end(client.marker(kit), kit.name, say):
        say(f"{kit.name} does not run here")
    return 0


def _end_run(plan: Deployment, folder: Path, say: Say) -> None:
    submit.stop(plan, folder)
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
