"""`fedkd deploy run`: hands a run to the SuperLink and shows it live; the run's folder is below the deployment."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedkd.configuration import compose, naming
from fedkd.configuration.resolved import Resolved
from fedkd.errors import ConfigError, DeployError, RunError
from fedkd.record import ledger
from simulations.deploy import app, server
from simulations.deploy.manifest import Deployment
from simulations.run import console_text, progress, run_folder, runs
from simulations.run.options import Options
from simulations.run.progress import Screen
from simulations.system import redacted, scratch

PUBLIC = Path("public") / "public.npz"  # below the deployment: images that all devices may see
BEGIN_SECONDS = 120.0  # until the run's process must have begun: importing torch on a busy machine is slow
POLL = 0.25
_FOLLOWED = (ledger.EVENTS, "metrics.jsonl", "timings.jsonl")


def start(
    deployment: Deployment, overrides: Sequence[str], options: Options, folder: Path | None = None
) -> dict[str, Any]:
    """Run a configuration on the devices; returns the summary that `--json` prints. Raises FedkdError.

    `folder`: where the run's own folder is made; None: `runs` below the deployment.
    """
    folder = folder or deployment.runs
    with progress.make(options) as screen:
        screen.phase("checking the configuration")
        resolved = compose.resolve([*deployment.run_overrides(), *overrides])
        _check(deployment, resolved)
        if options.name is not None:
            path = run_folder.named(folder, options.name)
        else:
            path = run_folder.proposed(folder, naming.of(resolved.config.strategy), resolved.digest())
        if path.exists() and not run_folder.is_unbegun(path):
            mend = f"choose another, or: fedkd deploy run DIR {path.name} --resume"
            raise ConfigError(f"there is a run '{path.name}' already", where="--name", mend=mend)
        return _run(deployment, resolved, path, screen, is_resumed=False)


def resume(deployment: Deployment, name: str | None, options: Options, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Resume a run, by default the newest unfinished one. Raises FedkdError, also if there are overrides."""
    folder = run_folder.find(deployment.runs, name) if name else runs.newest_unfinished(deployment.runs)
    with progress.make(options) as screen:
        runs.refuse_overrides(folder, overrides, f"fedkd deploy run {shlex.quote(str(deployment.folder))}")
        resolved = runs.same_configuration(folder)
        if run_folder.state(folder) == "done":
            screen.end([f"done   {folder} is already finished.  fedkd show {folder}"])
            return runs.show(folder)
        _check(deployment, resolved)
        return _run(deployment, resolved, folder, screen, is_resumed=True)


def public_set(deployment: Deployment) -> Path | None:
    """The server's file of public images, if there is one."""
    path = deployment.folder / PUBLIC
    return path if path.exists() else None


def _check(deployment: Deployment, resolved: Resolved) -> None:
    """Checks before anything is sent. Raises ConfigError, DataError and DeployError."""
    config = resolved.config
    if config.clients != len(deployment.devices):
        what = f"clients = {config.clients}, the deployment has {len(deployment.devices)} devices"
        mend = "leave it out: each device is a client; fedkd deploy add makes more"
        raise ConfigError(what, where="clients", mend=mend)
    server.reach(deployment)
    from simulations.deploy import assembly  # imports torch: seconds

    assembly.server(config, public_set(deployment))


def _run(deployment: Deployment, resolved: Resolved, path: Path, screen: Screen, *, is_resumed: bool) -> dict[str, Any]:
    screen.phase("handing the run to the SuperLink")
    follower = Follower(deployment, resolved, path, screen)  # first: the rows there now are those of earlier processes
    follower.flower_id = flower_id = submit(deployment, resolved, path, is_resumed=is_resumed)
    try:
        follower.follow()
    except KeyboardInterrupt:
        screen.close()
        screen.warn("asking the run to stop after the current job; it can be resumed")
        stop(deployment, path, flower_id)
        with suppress(KeyboardInterrupt, RunError):
            follower.follow()
    return follower.end()


def submit(deployment: Deployment, resolved: Resolved, path: Path, *, is_resumed: bool) -> str:
    """Send app and configuration to the SuperLink; returns Flower's id of the run. Raises DeployError."""
    server.write_connection(deployment)
    config = replace(resolved, sources=dict.fromkeys(resolved.sources, "the run")).to_yaml()  # without file names
    names = {str(device.client): device.name for device in deployment.devices}
    app_config = {
        "devices": True,
        "config": config,
        "runs": str(path.parent.absolute()),
        "name": path.name,
        "public": str(public_set(deployment) or ""),
        "names": json.dumps({"names": names, "nodes": server.nodes(deployment)}),
        "resume": is_resumed,
        "plaintext": not deployment.tls,
        "command": json.dumps(redacted.command(["fedkd", *sys.argv[1:]])),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch.folder("app") as folder:
        bundle, toml = app.stage(folder / "fedkd"), folder / "run.toml"
        lines = (f"{key} = {json.dumps(value)}\n" for key, value in app_config.items())
        toml.write_text("".join(lines), encoding="utf-8")
        arguments = (str(bundle), server.CONNECTION, "--run-config", str(toml), "--format", "json")
        done = server.flwr(deployment, "run", *arguments, seconds=120.0)
    reply = server.read_json(done.stdout)
    if not reply.get("run-id"):
        reason = (str(reply.get("error-message") or "") or done.stderr or done.stdout).strip()[-500:]
        mend = f"see {shlex.quote(str(deployment.logs / 'server.log'))}"
        raise DeployError(f"the SuperLink refuses the run: {reason}", where=deployment.superlink, mend=mend)
    return str(reply["run-id"])


def stop(deployment: Deployment, folder: Path, flower_id: str | None = None) -> None:
    """Ask a run to save and stop: by a signal to its process on this machine, else through Flower."""
    holder = run_folder.holder(folder)
    if holder is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(holder[0], signal.SIGINT)
            return
    if flower_id is not None:
        server.flwr(deployment, "stop", flower_id, server.CONNECTION)


class Follower:
    """Shows a run by following its folder. Counts rows rather than comparing times: clocks may be set back."""

    def __init__(self, deployment: Deployment, resolved: Resolved, folder: Path, screen: Screen) -> None:
        self.deployment, self.resolved, self.screen, self.folder = deployment, resolved, screen, folder
        self.flower_id = ""
        self._before = _version(folder / "run.json")
        self._first = self._events = len(ledger.rows(folder / ledger.EVENTS))
        self._rows, self._has_begun = 0, False
        self._sizes: list[int] = []

    def follow(self) -> None:
        """Follow until the run has ended. Raises RunError if its process has died or never began."""
        begin = time.monotonic() + BEGIN_SECONDS
        self.screen.phase("waiting for the run to begin")
        while True:
            is_held = run_folder.is_held(self.folder)
            has_ended = self._has_ended()  # read last: a process writes its end before it releases the lock
            if is_held or has_ended:
                self._show()
            if has_ended:
                return
            if not is_held and (self._has_begun or time.monotonic() > begin):
                raise self._died()
            self._has_begun = self._has_begun or is_held
            time.sleep(POLL)

    def end(self) -> dict[str, Any]:
        """Show the last lines; returns the summary. Raises RunError if the run failed."""
        summary = runs.show(self.folder)
        if summary["status"] == "done":
            self.screen.end(console_text.closing(summary, self._head("")))
            return summary
        if summary["status"] == "failed":
            mend = str(summary.get("mend") or f"To continue: {self._again()}")
            mend = mend.replace("deploy run DIR", self._deploy_run())
            raise RunError(str(summary.get("error") or "the run failed"), where=str(self.folder), mend=mend)
        self.screen.end([f"stopped  after round {summary['rounds']}; everything is saved.  {self._again()}"])
        return {**summary, "signal": summary.get("signal", "SIGINT")}

    def _has_ended(self) -> bool:
        """Whether the folder records an end, and no process holds it."""
        with suppress(Exception):
            info = run_folder.info(self.folder)
            is_new = _version(self.folder / "run.json") != self._before
            return info.get("state") != "running" and is_new and not run_folder.is_held(self.folder)
        return False

    def _show(self) -> None:
        sizes = [path.stat().st_size if path.exists() else 0 for path in map(self.folder.joinpath, _FOLLOWED)]
        if sizes == self._sizes and self.screen.head is not None:
            return  # nothing new: long ledgers are not read again
        self._sizes = sizes
        events, rows, timings = (ledger.rows(self.folder / name) for name in _FOLLOWED)
        for event in events[self._events :]:
            if event.get("event") in ("warn", "note"):
                show = self.screen.note if event["event"] == "note" else self.screen.warn
                show(str(event.get("what")))
        self._events = len(events)
        begun = [event["round"] for event in events[self._first :] if event.get("event") in ("start", "resume")]
        if self.screen.head is None and begun:
            self._rows = begun[0]  # rounds of earlier processes
            self.screen.begin(self._head(f"{len(self.deployment.devices)} devices"), rows[: self._rows])
        if self.screen.head is None:
            return
        failures = _failures(events)
        for row, timing in list(zip(rows, timings, strict=False))[self._rows :]:
            self.screen.round(row, timing["total"], failures.get(row["round"], ""))
            self._rows += 1

    def _head(self, engine: str) -> console_text.Head:
        student = run_folder.info(self.folder).get("client_student", "own")
        return console_text.head(self.resolved, self.folder, engine, student)

    def _died(self) -> RunError:
        log = server.flwr(self.deployment, "log", self.flower_id, server.CONNECTION, "--show")
        text = "\n".join(line for line in log.stdout.splitlines()[-12:] if line.strip())
        if not self._has_begun:
            return RunError(f"the run did not begin; its log ends with\n{text}", where=self.deployment.superlink)
        mend = f"make sure that the SuperLink is running, then: {self._again()}"
        what = "the process of the run has died; the state after its last round is saved"
        return RunError(what, where=str(self.folder), mend=mend)

    def _again(self) -> str:
        """The command that resumes this run."""
        return f"fedkd {self._deploy_run()} {self.folder.name} --resume"

    def _deploy_run(self) -> str:
        return f"deploy run {shlex.quote(str(self.deployment.folder))}"


def _version(path: Path) -> tuple[int, bytes] | None:
    """Identifies a version of a file; None if there is none."""
    with suppress(OSError):
        return path.stat().st_mtime_ns, path.read_bytes()
    return None


def _failures(events: Sequence[ledger.Row]) -> dict[int, str]:
    """Round -> its last failure."""
    return {
        row["round"]: f"client {row.get('client')}: {' '.join(str(row.get('what')).split())[:100]}"
        for row in events
        if row.get("event") == "failure"
    }
