"""`fedkd deploy status`: the SuperLink, its devices, and the newest run, in a few lines."""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.errors import DeployError, FedkdError
from fedkd.record import ledger
from simulations.deploy import certificates, processes, server, tls_check
from simulations.deploy.plan import Deployment
from simulations.run import run_folder


def look(plan: Deployment) -> dict[str, Any]:
    """The current facts about a deployment. Raises DeployError if the SuperLink does not answer."""
    tls_check.check(plan.address, plan.port, plan.ca if plan.tls else None)
    done = processes.run(
        ["flwr", "supernode", "list", server.CONNECTION, "--format", "json"], processes.environment(plan.flwr_home)
    )
    listed = server.read_json(done.stdout).get("nodes")
    if not isinstance(listed, list):
        raise DeployError(
            f"the SuperLink does not list its devices: {done.stderr.strip()[-300:]}", where=plan.superlink
        )
    by_id = {str(node.get("node-id")): node for node in listed if isinstance(node, Mapping)}
    known, run = server.nodes(plan), _newest(plan.runs)
    devices = [_device(device, by_id.get(known.get(device.name, ""), {}), run) for device in plan.devices]
    found = {"superlink": plan.superlink, "tls": plan.tls, "devices": devices}
    if plan.tls:
        found["certificate_days"] = certificates.days_left(plan.server_certificate, datetime.now(UTC))
    if run is not None:
        found["run"] = {key: run[key] for key in ("run", "strategy", "state", "round", "rounds")}
    return found


def text(found: Mapping[str, Any]) -> str:
    """The facts as text."""
    safe = f"TLS ok, expires in {found['certificate_days']} days" if found["tls"] else "NO TLS, no authentication"
    head = f"superlink {found['superlink']}  {safe}"
    if run := found.get("run"):
        head += f"   run {run['run']}  {run['strategy']}  {run['state']}  round {run['round']}/{run['rounds']}"
    rows = [("device", "fingerprint", "state", "since", "student", "rounds", "accuracy")]
    for device in found["devices"]:
        accuracy = f"{device['accuracy']:.3f}" if device.get("accuracy") is not None else "-"
        rows.append(
            (
                device["name"],
                device["fingerprint"][:16],
                device["state"],
                device.get("since") or "-",
                device.get("student") or "-",
                str(device.get("rounds", "-")),
                accuracy,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([head, *(f" {line}" for line in lines)])


def _device(device: Any, node: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    state = str(node.get("status", "not registered"))
    since = node.get("online-at") if state == "online" else node.get("offline-at")
    found = {
        "name": device.name,
        "client": device.client,
        "fingerprint": device.fingerprint,
        "state": state,
        "since": _ago(since),
        "student": device.student,
    }
    return {**found, **(_played(run, device.client) if run else {})}


def _newest(runs: Path) -> dict[str, Any] | None:
    """The newest run of the deployment, with its clients' rows."""
    folders = run_folder.listed(runs)
    if not folders:
        return None
    folder = folders[-1]
    with suppress(FedkdError, OSError, ValueError):
        info = run_folder.info(folder)
        rows = ledger.rows(folder / "clients.jsonl")
        round_ = len(ledger.rows(folder / "metrics.jsonl"))
        state = run_folder.state(folder)
        return {
            "run": folder.name,
            "strategy": info.get("strategy"),
            "state": state,
            "round": round_,
            "rounds": info.get("num_rounds"),
            "rows": rows,
            "devices": (info.get("engine") or {}).get("devices", []),
        }
    return None


def _played(run: Mapping[str, Any], client: int) -> dict[str, Any]:
    mine = [row for row in run["rows"] if row.get("client") == client]
    accuracies = [row["accuracy"] for row in mine if "accuracy" in row]
    facts: Mapping[str, Any] = next((facts for facts in run["devices"] if facts.get("client") == client), {})
    played = {
        "rounds": sum(row.get("state") == "ok" for row in mine),
        "accuracy": accuracies[-1] if accuracies else None,
        **({"student": facts["student"]} if facts.get("student") else {}),
    }
    return played


def _ago(said: Any) -> str | None:
    """How long ago a time of Flower's was: `4 min`."""
    with suppress(ValueError, TypeError):
        then = datetime.fromisoformat(str(said).replace("Z", "+00:00"))
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = max(0.0, time.time() - then.timestamp())
        for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
            if seconds >= size:
                return f"{seconds / size:.0f} {unit}"
        return f"{seconds:.0f} s"
    return None
