"""`fedkd compare`: from overrides to a plan. Runs begin in session.py, so mistakes are reported at once."""

import shlex
from dataclasses import replace
from pathlib import Path

from fedkd.errors import ConfigError
from simulations.analysis import candidates, cells, plan
from simulations.analysis.grid import COMMAND_LINE
from simulations.compare import tune
from simulations.engines import ray_session
from simulations.run import run_folder
from simulations.run.options import Compare


def main(asked: Compare) -> int:
    """Run the missing cells of a comparison, analyse, report; gives the exit code. Raises FedkdError."""
    given = {name: getattr(asked, name) for name in ("tune", "baseline", "metric", "target", "tune_seeds")}
    grid = cells.ask(asked.words, **given)
    tried = candidates.of(grid.tune, grid)
    jobs = _jobs(asked)
    fingerprint = plan.fingerprint(grid.words, tried)
    folder = _folder(fingerprint, asked)
    before = plan.load(folder)
    if before:
        plan.check_same(before, grid.words, tried)
    tuning = tune.ask(grid, before, lambda: _begin(asked))
    rows = tuning.rows(folder)
    found, tasks = plan.make(tuning.grid(rows), fingerprint, _command(asked), before)
    found = replace(found, tuning=tuning.note(), tuned=rows)
    from simulations.compare.session import Session

    session = Session(plan=found, tasks=tasks, tuning=tuning, folder=folder, jobs=jobs, options=asked)
    return session.show() if asked.dry_run else session.play()


def _begin(asked: Compare) -> None:
    """Announce the import of torch, which takes seconds: the quick checks have passed."""
    from simulations.compare import progress_table, worker_pool

    progress_table.make(asked).say("starting: loading PyTorch")
    if not (asked.dry_run or asked.debug):
        worker_pool.warm_up()


def _jobs(asked: Compare) -> int:
    if asked.jobs is not None and asked.jobs < 1:
        raise ConfigError(f"--jobs {asked.jobs}", where=COMMAND_LINE, mend="must be at least 1")
    return 1 if asked.debug else asked.jobs or ray_session.num_cores()


def _folder(fingerprint: str, asked: Compare) -> Path:
    """The folder's name is a hash of the request, so the same command, or one with more seeds, finds it again."""
    if asked.out is not None:
        return asked.out
    return run_folder.named(asked.runs, asked.name or f"compare-{fingerprint[:8]}")


def _command(asked: Compare) -> str:
    """The command that repeats the comparison."""
    flags = asked.flags("tune", "baseline", "metric", "target", "tune_seeds", "name", "out", "runs")
    return shlex.join(["fedkd", "compare", *asked.words, *flags])
