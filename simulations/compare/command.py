"""`fedkd compare`: from overrides to a plan. Runs begin in session.py, so mistakes are reported at once."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.errors import ConfigError
from simulations.analysis import candidates, cells, plan
from simulations.analysis.grid import COMMAND_LINE
from simulations.compare import tune
from simulations.engines import ray_session
from simulations.run import run_folder
from simulations.run.options import Compare

if TYPE_CHECKING:
    from simulations.compare.session import Session


def main(options: Compare) -> int:
    """Run the missing cells of a comparison, analyse, report; gives the exit code. Raises FedkdError."""
    prepared = prepare(options)
    from simulations.compare import calibrate, session

    if options.dry_run:
        cells = {**prepared.tuning.trials(), **prepared.tasks}
        return calibrate.show(prepared.plan, cells, prepared.folder, prepared.jobs, options)
    return session.run(prepared)


def prepare(options: Compare) -> "Session":
    """The checked comparison, with all its cells. Raises ConfigError and FolderError."""
    named = {name: getattr(options, name) for name in ("tune", "baseline", "metric", "target", "tune_seeds")}
    grid = cells.ask(options.overrides, **named)
    tried = candidates.parse(grid.tune, grid)
    jobs = _jobs(options)
    fingerprint = plan.fingerprint(grid.overrides, tried)
    folder = _folder(fingerprint, options)
    before = plan.load(folder)
    if before:
        plan.check_same(before, grid.overrides, tried)
    tuning = tune.ask(grid, before, lambda: _begin(options))
    rows = tuning.rows(folder)
    made, tasks = plan.make(tuning.grid(rows), fingerprint, _command(options), before)
    made = replace(made, tuning=tuning.note(), tuned=rows)
    from simulations.compare.session import Session

    return Session(made, tasks, tuning, folder, jobs, options)


def _begin(options: Compare) -> None:
    """Announce the import of torch, which takes seconds; the quick checks have passed."""
    from simulations.compare import cell_processes, progress_table

    progress_table.make(options).say("starting: loading PyTorch")
    if not (options.dry_run or options.debug):
        cell_processes.warm_up()


def _jobs(options: Compare) -> int:
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs} is below 1", where=COMMAND_LINE, mend="use at least 1")
    return 1 if options.debug else options.jobs or ray_session.num_cores()


def _folder(fingerprint: str, options: Compare) -> Path:
    """The default name is a hash of the request, so the same command, or one with more seeds, finds the folder."""
    if options.out is not None:
        return options.out
    return run_folder.named(options.runs, options.name or f"compare-{fingerprint[:8]}")


def _command(options: Compare) -> str:
    """The command that repeats the comparison."""
    flags = options.flags("tune", "baseline", "metric", "target", "tune_seeds", "name", "out", "runs")
    return shlex.join(["fedkd", "compare", *options.overrides, *flags])
