"""The server's side of a deployed run, inside Flower's ServerApp process."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedkd.configuration import compose
from fedkd.training.site import LocalSite
from simulations.deploy import assembly
from simulations.deploy.engine import EdgeEngine
from simulations.deploy.roster import Roster
from simulations.flower import run_config
from simulations.run import run_folder, runs
from simulations.run.driver import ExecutionTarget, Notify
from simulations.run.options import Options

PATIENCE = 600.0  # seconds until enough devices must have joined; on a small one importing torch takes a minute


def run(grid: Grid, app_config: Mapping[str, Any], text: str, name: str) -> None:
    """Run on the devices of a grid, or resume a run. Raises FedkdError.

    Keys of `app_config`: `runs` (folder), `resume`, `public` (file of public images), `plaintext`,
    `names` (JSON: `names`, client -> device; `nodes`, device -> node id of its key),
    `command` (JSON: the command line that started the run).
    """
    resolved = compose.from_yaml(text, "the run's configuration")
    config = resolved.config
    public = Path(str(app_config["public"])) if app_config.get("public") else None
    names, nodes = _known(str(app_config.get("names") or "{}"))

    def connect(site: LocalSite, notify: Notify) -> EdgeEngine:
        roster = Roster(grid, config.clients, notify, names, nodes)
        roster.wait(config.quorum, PATIENCE)
        return EdgeEngine(grid, site, roster, notify=notify, is_plaintext=bool(app_config.get("plaintext")))

    target = ExecutionTarget(connect=connect, assemble=partial(assembly.server, public=public), commit_each_round=True)
    folder = run_config.folder(str(app_config["runs"]))
    if app_config.get("resume"):
        runs.resume(run_folder.find(folder, name), runs=folder, options=Options(), target=target)
    else:
        command = json.loads(str(app_config.get("command") or "[]"))
        runs.start(resolved, runs=folder, name=name, options=Options(), target=target, command=command)


def _known(text: str) -> tuple[dict[int, str], dict[int, int]]:
    """The devices' names, and the nodes of those whose keys are registered; both by client."""
    known = json.loads(text)
    names = {int(client): str(name) for client, name in known.get("names", {}).items()}
    nodes = known.get("nodes", {})
    return names, {client: int(nodes[name]) for client, name in names.items() if name in nodes}
