"""Start, resume, show and list runs. Free of torch until a run begins, so that mistakes appear at once."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.configuration import naming
from fedkd.configuration.resolved import Resolved
from fedkd.errors import CheckpointError, ConfigError, FedkdError, FolderError
from fedkd.record import ledger
from simulations.run import code_copies, console_text, extension, progress, provenance, run_folder, summary, tracking
from simulations.run.exclusion import NOBODY, Exclusion
from simulations.run.options import Options
from simulations.run.progress import Screen
from simulations.run.run_folder import RunFolder
from simulations.system import redacted

if TYPE_CHECKING:
    from simulations.run.driver import ExecutionTarget
    from simulations.run.fork import Origin

EXIT_CODES = {"done": 0, "failed": 4, "SIGINT": 130, "SIGTERM": 143}
_FIRST = "loading PyTorch"  # the first phase; takes seconds


def start(
    resolved: Resolved,
    *,
    runs: Path,
    name: str | None = None,
    out: Path | None = None,
    options: Options,
    target: "ExecutionTarget | None" = None,
    screen: Screen | None = None,
    command: Sequence[str] = (),
    origin: "Origin | None" = None,
) -> dict[str, Any]:
    """Run a configuration in a new folder; returns the summary that `--json` prints. Raises FedkdError.

    `target` replaces the configuration's engine, `screen` a new one, `command` this process's own command line.
    `origin`: the commit of another run to start from (simulations/run/fork.py).
    """
    tracking.check(resolved.config.track)
    screen = screen or progress.make(options)
    folder = run_folder.create(runs, naming.of(resolved.config.strategy), resolved.digest(), name=name, out=out)
    try:
        _describe(folder, resolved, command or ["fedkd", *sys.argv[1:]])
        if origin is not None:
            origin.bring(folder, resolved.digest())
        return _drive(resolved, folder, screen, options, target)
    except (FedkdError, KeyboardInterrupt) as error:
        is_misfit = isinstance(error, CheckpointError) and origin is not None and folder.info()["round"] == origin.round
        if is_misfit or not (folder.path / "partition.json").exists():  # it has not begun: leave nothing behind
            folder.discard()
        raise
    finally:
        folder.release()


def resume(
    path: Path | None,
    *,
    runs: Path,
    options: Options,
    target: "ExecutionTarget | None" = None,
    overrides: Sequence[str] = (),
    exclusion: Exclusion = NOBODY,
    anyway: bool = False,
) -> dict[str, Any]:
    """Continue a run, by default the newest unfinished one; a finished run is only summarised.

    The final ledger is that of an unbroken run. Raises FedkdError, also for overrides: the configuration stays, except
    for a larger number of rounds; `anyway`: even if the run then differs from one with that number from the start.
    `exclusion`: the clients to leave out from now on.
    """
    place = run_folder.find(runs, path) if path is not None else newest_unfinished(runs)
    now = int(run_folder.info(place).get("num_rounds", 0))
    rounds = extension.parse(overrides, now, is_named=path is not None)
    if rounds is None or run_folder.is_on_devices(place):
        refuse_overrides(place, overrides, f"fedkd run {shlex.quote(str(place / 'config.yaml'))}")
    folder = run_folder.reopen(place)
    try:
        with progress.make(options) as screen:
            screen.phase(_FIRST)
            info, resolved = folder.info(), same_configuration(place)
            longer = rounds and extension.plan(place, resolved, rounds, anyway=anyway)
            is_done = info.get("state") == "done" and not longer
            exclusion.check({**info, "state": "done" if is_done else "stopped"}, place, resolved.config.quorum)
            if not is_done:
                tracking.check(resolved.config.track)
            if longer:
                resolved = extension.lengthened(resolved, longer.to)
                longer.apply(folder, resolved, _now())
                if longer.replayed and info.get("round") == longer.last:
                    screen.note(longer.replayed)
            elif info.get("extended"):
                extension.write(folder, resolved)
            if is_done:
                screen.end([f"done   {place} was finished before; nothing is left to run.  fedkd show {place}"])
                return totals(place)
            _compare_environment(info, screen)
            folder.note(state="running", resumed=_now(), error=None, mend=None, replays=None)
            exclusion.go_back(folder)
            return _drive(resolved, folder, screen, options, target, exclusion)
    finally:
        folder.release()


def exit_code(totals: dict[str, Any]) -> int:
    """The exit code for a summary: 0, 4, 130 after Ctrl-C, 143 after SIGTERM."""
    return EXIT_CODES[totals.get("signal", "SIGINT") if totals["status"] == "stopped" else totals["status"]]


def show(path: Path, *, options: Options | None = None) -> dict[str, Any]:
    """All facts about one run: run.json and its summary so far. Raises FolderError.

    Prints them too, if there are `options` without --json.
    """
    facts = {**run_folder.info(path), **totals(path)}
    if options is not None and not options.json:
        print("\n".join(console_text.portrait(facts)))
    return facts


def listing(runs: Path) -> list[dict[str, Any]]:
    """A row per run, oldest first: run, state, strategy, data, partition, seed, rounds, of, accuracy, created."""
    return [_listed(path) for path in run_folder.listed(runs)]


def _drive(
    resolved: Resolved,
    folder: RunFolder,
    screen: Screen,
    options: Options,
    target: "ExecutionTarget | None" = None,
    exclusion: Exclusion = NOBODY,
) -> dict[str, Any]:
    try:
        screen.phase(_FIRST)
        from simulations.run.driver import Driver  # 2 s: torch

        return Driver(resolved, folder, screen, debug=options.debug, target=target).run(exclusion)
    finally:
        screen.close()


def _describe(folder: RunFolder, resolved: Resolved, command: Sequence[str]) -> None:
    config = resolved.config
    folder.write_text("config.yaml", resolved.to_yaml())
    code_copies.write(folder.path, resolved.code)
    folder.write_json(
        "run.json",
        {
            **run_folder.SCHEMAS,
            "run": folder.id,
            "state": "running",
            "created": _now(),
            "strategy": naming.of(config.strategy),
            "halves": list(naming.halves(config.strategy)),  # server and client
            "variant": config.strategy.get("variant"),
            "data": config.data.name,
            "partition": config.partition["name"],
            "seed": config.seed,
            "num_clients": config.clients,
            "num_rounds": config.rounds,
            "round": 0,
            "config": resolved.digest(),
            "student_weights": _file_hash(config.students.weights),
            "user_code": code_copies.facts(resolved.code),
            **({"session": dict(resolved.session)} if resolved.session else {}),
            "command": redacted.command(command),
            **run_folder.environment(),
        },
    )


def refuse_overrides(place: Path, overrides: Sequence[str], command: str) -> None:
    """Raises CheckpointError if a resume has overrides; `command` begins a command that takes them."""
    if overrides:
        given = shlex.join(overrides)
        raise CheckpointError(
            f"a run keeps the configuration that it began with, so it cannot be resumed with {given}",
            where=str(place),
            mend=f"leave {given} out, or start a new run: {command} {given}",
        )


def same_configuration(place: Path) -> Resolved:
    """The configuration of a run, from its config.yaml.

    Raises CheckpointError if the file was edited, or if another version of fedkd with other keys wrote it.
    """
    from fedkd.configuration import compose

    info = run_folder.info(place)
    code_copies.execute(place, info)
    why = "config.yaml is not the configuration that this run began with"
    mend = f"undo the changes, or start a new run: fedkd run {shlex.quote(str(place / 'config.yaml'))}"
    try:
        resolved = extension.current(compose.from_yaml_file(place / "config.yaml"), info)
    except ConfigError as error:
        if info.get("deciding_code") != provenance.decisive():
            why = "this run began with another version of fedkd, and this one does not read its config.yaml"
            code = f" (commit {str(info['git'])[:12]})" if info.get("git") else ""
            mend = f"continue with that version{code}, or start a new run from a corrected copy of config.yaml"
        first, *more = error.mistakes
        what = f"{first.what} ({first.where})" + (f" and {len(more)} more" if more else "")
        raise CheckpointError(f"{why}: {what}", where=str(place), mend=mend) from error
    if resolved.digest() != info.get("config"):
        raise CheckpointError(why, where=str(place), mend=mend)
    weights = resolved.config.students.weights
    if weights and _file_hash(weights) != info.get("student_weights"):
        what = f"{weights} is not the file that this run began with, or is missing"
        raise CheckpointError(what, where=str(place), mend="put that file back")
    return resolved


def _file_hash(path: str | None) -> str | None:
    """SHA-256 (hex) of a file; None without one."""
    place = Path(path).expanduser() if path else None
    return hashlib.sha256(place.read_bytes()).hexdigest() if place and place.is_file() else None


def _compare_environment(info: dict[str, Any], screen: Screen) -> None:
    """Warn about changes that may change the last bits: other versions, or another kind of machine."""
    now = run_folder.environment()
    then = info.get("versions", {})
    changed = [f"{name} {then[name]} -> {new}" for name, new in now["versions"].items() if then.get(name, new) != new]
    if info.get("machine", now["machine"]) != now["machine"]:
        changed.append(f"{info['machine']} -> {now['machine']}")
    changed += _code_changed(info, now)
    if changed:
        screen.warn(f"changed since this run began: {', '.join(changed)}; results may differ from an unbroken run's")


def _code_changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare the hash of the files that determine results, or the commit for older runs without it."""
    key = "deciding_code" if "deciding_code" in then else "git"
    old, new = then.get(key), now[key]
    return [f"code {old[:12]} -> {new[:12]}"] if old and new and old != new else []


def newest_unfinished(runs: Path) -> Path:
    """The newest run below a folder that is stopped, or failed for a reason that may not recur. Raises FolderError."""
    unfinished = [path for path in run_folder.listed(runs) if _can_continue(path)]
    if not unfinished:
        raise FolderError("no unfinished run", where=str(runs), mend="fedkd list runs shows all, fedkd run starts one")
    return unfinished[-1]


def _can_continue(path: Path) -> bool:
    return run_folder.state(path) in {"stopped", "failed"} and not run_folder.info(path).get("replays")


def totals(path: Path) -> dict[str, Any]:
    """The summary of a run in any state, from its ledger."""
    records = ledger.read(path)
    numbers = summary.of_rows(records.metrics, records.timings)
    return {"run": str(path), "status": run_folder.state(path), **numbers}


def _listed(path: Path) -> dict[str, Any]:
    info = run_folder.info(path)
    rows = ledger.rows(path / "metrics.jsonl")
    accuracies = console_text.curve(rows)
    return {
        "run": path.name,
        "state": run_folder.state(path),
        **{key: info.get(key) for key in ("strategy", "variant", "data", "partition", "seed")},
        "rounds": len(rows),
        "of": info.get("num_rounds"),
        "accuracy": accuracies[-1] if accuracies else None,
        "created": info.get("created"),
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
