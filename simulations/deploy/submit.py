"""`fedkd deploy run`: hands a run to the SuperLink, shows it live, and leaves its folder beside the deployment."""

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
from simulations.deploy import app, processes, server, tls_check
from simulations.deploy.plan import Deployment
from simulations.run import console_text, progress, run_folder, runs
from simulations.run.options import Options
from simulations.run.progress import Screen
from simulations.system import redacted, scratch

PUBLIC = Path("public") / "public.npz"  # below the deployment: images that everybody may see
BEGIN_SECONDS = 120.0  # until the run's process must show: an import of torch on a busy machine
POLL = 0.25
_FOLLOWED = (ledger.EVENTS, "metrics.jsonl", "timings.jsonl")


def start(plan: Deployment, words: Sequence[str], options: Options, folder: Path | None = None) -> dict[str, Any]:
    """Run a configuration on the devices of a deployment; gives the summary that `--json` prints. Raises FedkdError.

    `folder` is where the run's own folder is made; None: beside the deployment.
    """
    folder = folder or plan.runs
    with progress.make(options) as screen:
        screen.phase("checking the configuration")
        resolved = compose.resolve([*plan.run_words(), *words])
        _check(plan, resolved)
        place = _place(folder, resolved, options)
        if place.exists() and not run_folder.is_unbegun(place):
            where = f"fedkd deploy run DIR {place.name} --resume"
            raise ConfigError(
                f"there is a run '{place.name}' already", where="--name", mend=f"choose another, or: {where}"
            )
        return _play(plan, resolved, place, screen, is_resumed=False)


def resume(plan: Deployment, wanted: str | None, options: Options, words: Sequence[str] = ()) -> dict[str, Any]:
    """Resume a run of a deployment, by default the newest unfinished one. Raises FedkdError, also for overrides."""
    folder = run_folder.find(plan.runs, wanted) if wanted else runs.newest_unfinished(plan.runs)
    with progress.make(options) as screen:
        runs.refuse_words(folder, words, f"fedkd deploy run {shlex.quote(str(plan.folder))}")
        resolved = runs.same_configuration(folder)
        if run_folder.state(folder) == "done":
            screen.end([f"done   {folder} was finished before; nothing is left to run.  fedkd show {folder}"])
            return runs.show(folder)
        _check(plan, resolved)
        return _play(plan, resolved, folder, screen, is_resumed=True)


def public_set(plan: Deployment) -> Path | None:
    """The server's file of public images, if there is one."""
    path = plan.folder / PUBLIC
    return path if path.exists() else None


def _check(plan: Deployment, resolved: Resolved) -> None:
    """Checks before anything is sent. Raises ConfigError, DataError and DeployError."""
    config = resolved.config
    if config.clients != len(plan.devices):
        raise ConfigError(
            f"clients = {config.clients}, the deployment has {len(plan.devices)} devices",
            where="clients",
            mend="leave it out: each device is a client; fedkd deploy add makes more",
        )
    tls_check.check(plan.address, plan.port, plan.ca if plan.tls else None)
    from simulations.deploy import assembly  # torch: seconds

    assembly.server(config, public_set(plan))


def _place(folder: Path, resolved: Resolved, options: Options) -> Path:
    if options.name is not None:
        return run_folder.named(folder, options.name)
    return run_folder.proposed(folder, naming.of(resolved.config.strategy), resolved.digest())


def _play(plan: Deployment, resolved: Resolved, place: Path, screen: Screen, *, is_resumed: bool) -> dict[str, Any]:
    screen.phase("handing it to the SuperLink")
    follower = Follower(plan, resolved, place, screen)  # before: what is there now belongs to earlier processes
    follower.flower_id = flower_id = submit(plan, resolved, place, is_resumed=is_resumed)
    try:
        follower.follow()
    except KeyboardInterrupt:
        screen.close()
        screen.warn("asking the run to stop after the current job; it can be resumed")
        stop(plan, place, flower_id)
        with suppress(KeyboardInterrupt, RunError):
            follower.follow()
    return follower.end()


def submit(plan: Deployment, resolved: Resolved, place: Path, *, is_resumed: bool) -> str:
    """Send app and configuration to the SuperLink; gives Flower's id of the run. Raises DeployError."""
    server.write_connection(plan)
    config = replace(resolved, sources=dict.fromkeys(resolved.sources, "the run")).to_yaml()  # no names of files
    names = {str(device.client): device.name for device in plan.devices}
    given = {
        "devices": True,
        "config": config,
        "runs": str(place.parent.absolute()),
        "name": place.name,
        "public": str(public_set(plan) or ""),
        "names": json.dumps({"names": names, "nodes": server.nodes(plan)}),
        "resume": is_resumed,
        "plaintext": not plan.tls,
        "command": json.dumps(redacted.command(["fedkd", *sys.argv[1:]])),
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch.folder("app") as folder:
        place = app.stage(folder / "fedkd")
        said = folder / "run.toml"
        said.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()), encoding="utf-8")
        command = ["flwr", "run", str(place), server.CONNECTION, "--run-config", str(said), "--format", "json"]
        done = processes.run(command, processes.environment(plan.flwr_home), seconds=120.0)
    found = server.read_json(done.stdout)
    if not found.get("run-id"):
        reason = (str(found.get("error-message") or "") or done.stderr or done.stdout).strip()[-500:]
        raise DeployError(
            f"the SuperLink does not take the run: {reason}",
            where=plan.superlink,
            mend=f"see {shlex.quote(str(plan.logs / 'server.log'))}",
        )
    return str(found["run-id"])


def stop(plan: Deployment, folder: Path, flower_id: str | None = None) -> None:
    """Ask a run to stop in order: its process here by signal, else through Flower."""
    found = run_folder.holder(folder)
    if found is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(found[0], signal.SIGINT)
            return
    if flower_id is not None:
        command = ["flwr", "stop", flower_id, server.CONNECTION]
        processes.run(command, processes.environment(plan.flwr_home))


class Follower:
    """Shows a run by following its folder. Does not use clocks to find new rows: clocks may be set back."""

    def __init__(self, plan: Deployment, resolved: Resolved, folder: Path, screen: Screen) -> None:
        self.plan, self.resolved, self.screen, self.folder = plan, resolved, screen, folder
        self.flower_id = ""
        self._before = _version(folder / "run.json")
        self._first = self._events = len(ledger.rows(folder / ledger.EVENTS))
        self._rows, self._has_begun = 0, False
        self._sizes: list[int] = []

    def follow(self) -> None:
        """Follow until the run has ended. Raises RunError if its process has died, or never began."""
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
        """Show the last lines; the summary. Raises RunError if the run failed."""
        found = runs.show(self.folder)
        if found["status"] == "failed":
            what, mend = found.get("error") or "the run failed", found.get("mend") or f"To continue: {self._again()}"
            raise RunError(
                str(what), where=str(self.folder), mend=str(mend).replace("deploy run DIR", self._deploy_run())
            )
        if found["status"] == "done":
            self.screen.end(console_text.closing(found, self._head("")))
        else:
            self.screen.end([f"stopped  after round {found['rounds']}; everything is saved.  {self._again()}"])
            found = {**found, "signal": found.get("signal", "SIGINT")}
        return found

    def _has_ended(self) -> bool:
        """Whether the folder says so, and no process holds it."""
        with suppress(Exception):
            info = run_folder.info(self.folder)
            is_new = _version(self.folder / "run.json") != self._before
            return info.get("state") != "running" and is_new and not run_folder.is_held(self.folder)
        return False

    def _show(self) -> None:
        sizes = [path.stat().st_size if path.exists() else 0 for path in map(self.folder.joinpath, _FOLLOWED)]
        if sizes == self._sizes and self.screen.head is not None:
            return  # nothing new: do not read long ledgers again
        self._sizes = sizes
        events, rows, timings = (ledger.rows(self.folder / name) for name in _FOLLOWED)
        for event in events[self._events :]:
            if event.get("event") in ("warn", "note"):
                show = self.screen.note if event["event"] == "note" else self.screen.warn
                show(str(event.get("what")))
        self._events = len(events)
        begun = [event["round"] for event in events[self._first :] if event.get("event") in ("start", "resume")]
        if self.screen.head is None and begun:
            self._rows = begun[0]  # rounds that earlier processes played
            self.screen.begin(self._head(f"{len(self.plan.devices)} devices"), rows[: self._rows])
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
        log = processes.run(["flwr", "log", self.flower_id, server.CONNECTION, "--show"], self._env())
        text = "\n".join(line for line in log.stdout.splitlines()[-12:] if line.strip())
        if not self._has_begun:
            return RunError(f"the run did not begin; its log ends with\n{text}", where=self.plan.superlink)
        return RunError(
            "the process of the run has died; the state after its last round is safe",
            where=str(self.folder),
            mend=f"is the SuperLink running? Then: {self._again()}",
        )

    def _env(self) -> dict[str, str]:
        return processes.environment(self.plan.flwr_home)

    def _again(self) -> str:
        """The command that resumes this run."""
        return f"fedkd {self._deploy_run()} {self.folder.name} --resume"

    def _deploy_run(self) -> str:
        return f"deploy run {shlex.quote(str(self.plan.folder))}"


def _version(path: Path) -> tuple[int, bytes] | None:
    """Identifies a version of a file; None if there is none."""
    with suppress(OSError):
        return path.stat().st_mtime_ns, path.read_bytes()
    return None


def _failures(events: Sequence[ledger.Row]) -> dict[int, str]:
    """Round -> its last failure."""
    found = {}
    for row in events:
        if row.get("event") == "failure":
            text = " ".join(str(row.get("what")).split())[:100]
            found[row["round"]] = f"client {row.get('client')}: {text}"
    return found
