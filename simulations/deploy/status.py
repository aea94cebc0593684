"""`fedkd deploy status`: the SuperLink, its devices and the newest run."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.errors import DeployError, FedkdError
from fedkd.record import ledger
from simulations.deploy import certificates, server
from simulations.deploy.manifest import Deployment, DeviceEntry
from simulations.run import run_folder


def look(deployment: Deployment) -> dict[str, Any]:
    """The current facts about a deployment. Raises DeployError if the SuperLink does not answer."""
    server.reach(deployment)
    done = server.flwr(deployment, "supernode", "list", server.CONNECTION, "--format", "json")
    listed = server.read_json(done.stdout).get("nodes")
    if not isinstance(listed, list):
        what = f"the SuperLink does not list its devices: {done.stderr.strip()[-300:]}"
        raise DeployError(what, where=deployment.superlink)
    by_id = {str(node.get("node-id")): node for node in listed if isinstance(node, Mapping)}
    known, run = server.nodes(deployment), _newest(deployment.runs)
    devices = [_device(device, by_id.get(known.get(device.name, ""), {}), run) for device in deployment.devices]
    facts = {"superlink": deployment.superlink, "tls": deployment.tls, "devices": devices}
    if deployment.tls:
        facts["certificate_days"] = certificates.days_left(deployment.server_certificate, datetime.now(UTC))
    if run is not None:
        facts["run"] = {key: run[key] for key in ("run", "strategy", "state", "round", "rounds")}
    return facts


def text(facts: Mapping[str, Any]) -> str:
    """The facts as a table."""
    security = f"TLS ok, expires in {facts['certificate_days']} days" if facts["tls"] else "NO TLS, no authentication"
    head = f"superlink {facts['superlink']}  {security}"
    if run := facts.get("run"):
        head += f"   run {run['run']}  {run['strategy']}  {run['state']}  round {run['round']}/{run['rounds']}"
    rows = [("device", "fingerprint", "state", "since", "student", "rounds", "accuracy")]
    for device in facts["devices"]:
        accuracy = f"{device['accuracy']:.3f}" if device.get("accuracy") is not None else "-"
        key, since, student = device["fingerprint"][:16], device["since"] or "-", device["student"] or "-"
        rows.append((device["name"], key, device["state"], since, student, str(device.get("rounds", "-")), accuracy))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([head, *(f" {line}" for line in lines)])


def _device(device: DeviceEntry, node: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    state = str(node.get("status", "not registered"))
    since = node.get("online-at") if state == "online" else node.get("offline-at")
    return {**asdict(device), "state": state, "since": _ago(since), **(_trained(run, device.client) if run else {})}


def _newest(runs: Path) -> dict[str, Any] | None:
    """The newest run of the deployment, with its clients' rows."""
    for folder in run_folder.listed(runs)[-1:]:
        with suppress(FedkdError, OSError, ValueError):
            info = run_folder.info(folder)
            return {
                "run": folder.name,
                "strategy": info.get("strategy"),
                "state": run_folder.state(folder),
                "round": len(ledger.rows(folder / "metrics.jsonl")),
                "rounds": info.get("num_rounds"),
                "rows": ledger.rows(folder / "clients.jsonl"),
                "devices": (info.get("engine") or {}).get("devices", []),
            }
    return None


def _trained(run: Mapping[str, Any], client: int) -> dict[str, Any]:
    """What a client has done in a run: its rounds, its last accuracy, and its student if the device reported it."""
    rows = [row for row in run["rows"] if row.get("client") == client]
    accuracies = [row["accuracy"] for row in rows if "accuracy" in row]
    reported: Mapping[str, Any] = next((facts for facts in run["devices"] if facts.get("client") == client), {})
    return {
        "rounds": sum(row.get("state") == "ok" for row in rows),
        "accuracy": accuracies[-1] if accuracies else None,
        **({"student": reported["student"]} if reported.get("student") else {}),
    }


def _ago(time_text: Any) -> str | None:
    """The time since one of Flower's timestamps: `4 min`; None if there is none."""
    with suppress(ValueError, TypeError):
        then = datetime.fromisoformat(str(time_text))
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = max(0.0, time.time() - then.timestamp())
        for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
            if seconds >= size:
                return f"{seconds / size:.0f} {unit}"
        return f"{seconds:.0f} s"
    return None
