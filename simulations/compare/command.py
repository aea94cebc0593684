"""`fedkd compare`: from words to a plan; what is played then is in session.py, so that mistakes are told at once."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedkd.errors import ConfigError
from simulations import ray_session, run_folder
from simulations.compare import candidates, cells, plan, tune
from simulations.compare.grid import COMMAND_LINE
from simulations.options import Options


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `fedkd compare` was asked, beside the options of all verbs."""

    words: Sequence[str]
    jobs: int | None = None  # runs side by side; None: one a core
    baseline: str | None = None
    metric: str | None = None
    target: float | None = None
    tune: Sequence[str] = ()
    tune_seeds: int | None = None
    dry_run: bool = False


def main(request: Request, options: Options) -> int:
    """Play what is missing of a comparison, judge, report; gives the exit code. Raises FedkdError."""
    given = {name: getattr(request, name) for name in ("tune", "baseline", "metric", "target", "tune_seeds")}
    asked = cells.ask(request.words, **given)
    tried = candidates.of(asked.tune, asked)
    jobs = _jobs(request, options)
    fingerprint = plan.fingerprint(asked.words, tried)
    folder = _folder(fingerprint, options)
    before = plan.load(folder)
    if before:
        plan.check_same(before, asked.words, tried)
    tuning = tune.ask(asked, before, lambda: _begin(request, options))
    rows = tuning.rows(folder)
    found, tasks = plan.make(tuning.grid(rows), fingerprint, _command(request, options), before)
    found = replace(found, tuning=tuning.note(), tuned=rows)
    from simulations.compare.session import Session

    session = Session(plan=found, tasks=tasks, tuning=tuning, folder=folder, jobs=jobs, options=options)
    return session.show() if request.dry_run else session.play()


def _begin(request: Request, options: Options) -> None:
    """All is right that can be told at once: now the seconds begin in which torch is imported."""
    from simulations.compare import board, player

    board.make(options).say("starting: loading PyTorch")
    if not (request.dry_run or options.debug):
        player.warm_up()


def _jobs(request: Request, options: Options) -> int:
    if request.jobs is not None and request.jobs < 1:
        raise ConfigError(f"--jobs {request.jobs}", where=COMMAND_LINE, mend="must be at least 1")
    return 1 if options.debug else request.jobs or ray_session.num_cores()


def _folder(fingerprint: str, options: Options) -> Path:
    """Named by what is asked, so that the same command, or one with more seeds, finds it again."""
    if options.out is not None:
        return options.out
    return run_folder.named(options.runs, options.name or f"compare-{fingerprint[:8]}")


def _command(request: Request, options: Options) -> str:
    """The command that makes the comparison again."""
    given = {
        "--baseline": request.baseline,
        "--metric": request.metric,
        "--target": request.target,
        "--tune-seeds": request.tune_seeds,
        "--name": options.name,
        "--out": options.out,
        "--runs": options.runs if options.runs != Options.runs else None,
    }
    flags = [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
    tuned = [part for each in request.tune for part in ("--tune", each)]
    return shlex.join(["fedkd", "compare", *request.words, *tuned, *flags])
