"""One `fedkd compare` command: runs the missing cells, analyses, reports, and says how to continue."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.configuration.resolved import Resolved
from fedkd.errors import FolderError
from simulations.analysis import choices, plan
from simulations.analysis.plan import Cell, ComparisonPlan
from simulations.compare import calibrate, cell_processes, progress_table
from simulations.compare.cell_process import CellResult
from simulations.compare.progress_table import Progress, ProgressDisplay
from simulations.compare.tune import Tuning
from simulations.run import run_folder, tracking
from simulations.run.options import Options
from simulations.run.run_folder import RunFolder

if TYPE_CHECKING:
    from simulations.analysis.result import Verdict

NOT_ALL = 4  # the exit code if a run is missing


@dataclass(frozen=True)
class Session:
    """One command: its plan with all cells, the folder, and the options."""

    plan: ComparisonPlan
    tasks: Mapping[Cell, Resolved]  # the cells of the plan
    tuning: Tuning
    folder: Path
    jobs: int
    options: Options


def run(session: Session) -> int:
    """Run, analyse, report; gives the exit code. Raises FedkdError; KeyboardInterrupt only when all is saved."""
    held = run_folder.hold(session.folder)
    display = progress_table.make(session.options, session.folder / "log.txt")
    try:
        if note := calibrate.seeds_note(session.plan):
            display.say(f"note    {note}")
        finished = _run_all(session, held, display)
        display.close()
        return _conclude(finished, session)
    except KeyboardInterrupt:
        display.close()
        _say_stopped(session)
        raise
    finally:
        display.close()
        held.release()


def _run_all(session: Session, held: RunFolder, display: ProgressDisplay) -> ComparisonPlan:
    """Run the trials, choose, run the cells; gives the plan with the choices and the failures."""
    session.plan.write(held)
    current, tasks, trials = session.plan, session.tasks, session.tuning.trials()
    if trials:
        _run_cells(trials, session, display, f"{session.folder.name}, tuning")
        rows = session.tuning.rows(session.folder)
        tasks = plan.cells(session.tuning.grid(rows), current.seeds)
        current = replace(current, tuned=rows, cells=tuple(tasks))
        current.write(held)
        for line in tuned.lines() if (tuned := choices.from_plan(current.tuning, rows)) else ():
            display.say(f"tuned   {line}")
    outcomes = _run_cells(tasks, session, display, session.folder.name)
    failed = {folder: outcome.error for folder, outcome in outcomes.items() if outcome.status == "failed"}
    current = replace(current, failed=failed)
    current.write(held)
    return current


def _run_cells(
    tasks: Mapping[Cell, Resolved], session: Session, display: ProgressDisplay, name: str
) -> dict[str, CellResult]:
    """Run the missing ones among some cells. Raises FolderError if the disk is full."""
    tracking.check(name for task in tasks.values() for name in task.config.track)
    folder = session.folder
    missing = {cell: task for cell, task in tasks.items() if not plan.is_done(folder / cell.folder, cell.digest)}
    display.begin(name, [_progress(cell, folder, tasks[cell], cell not in missing) for cell in tasks], session.jobs)
    if session.options.debug:
        outcomes = cell_processes.run_here(missing, folder, display)
    else:
        cell_processes.warm_up()
        downloading = _downloading(missing)  # two processes must not fetch the same files
        outcomes = cell_processes.run({cell: missing.pop(cell) for cell in downloading}, folder, 1, display)
        outcomes |= cell_processes.run(missing, folder, session.jobs, display)
    display.close()
    display.say(f"done    {display.summary()}")
    if any(outcome.is_disk_full for outcome in outcomes.values()):
        mend = f"free some space, then repeat the same command:  {session.plan.command}"
        raise FolderError(run_folder.FULL, where=str(folder), mend=mend)
    return outcomes


def _downloading(tasks: Mapping[Cell, Resolved]) -> list[Cell]:
    """The first cell of each data set that may need a download."""
    first: dict[str, Cell] = {}
    for cell, resolved in tasks.items():
        if resolved.config.data.download:
            first.setdefault(resolved.config.data.name, cell)
    return list(first.values())


def _progress(cell: Cell, folder: Path, resolved: Resolved, is_done: bool) -> Progress:
    state = "done" if is_done else "waiting"
    return Progress(cell, folder / cell.folder / "metrics.jsonl", resolved.config.rounds, state)


def _conclude(finished: ComparisonPlan, session: Session) -> int:
    """Print the verdict and write the report; gives the exit code."""
    from simulations import report
    from simulations.analysis import analyse

    folder, options = session.folder, session.options
    verdict = analyse.analyse(plan.question(finished, folder.name), plan.runs(finished, folder))
    paths = report.write(verdict, folder)
    page = next((path for path in paths if path.suffix == ".html"), folder)
    if not (options.json and options.quiet):
        lines = ["", *report.screen(verdict), f"report  {page}"]
        print("\n".join(lines), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        failed = [f"{run.name}: {run.reason}" for run in verdict.failed]
        tuned = verdict.question.tuned
        done = {"status": "failed" if failed else "done", "failed": failed}
        done |= {"tuned": list(tuned.lines())} if tuned else {}
        options.answer({**_counts(finished, session), **done, "report": str(page), "verdict": list(verdict.sentences)})
    if verdict.failed:
        print(f"error  {_missing(verdict, finished)}\n       {_mend(finished, folder)}", file=sys.stderr)
    return NOT_ALL if verdict.failed else 0


def _missing(verdict: "Verdict", finished: ComparisonPlan) -> str:
    first, total = verdict.failed[0], len(finished.cells)
    count = "none" if len(verdict.failed) == total else f"only {total - len(verdict.failed)}"
    reason = progress_table.one_line(f"{first.name}: {first.reason}")
    return f"comparison: {count} of {total} runs are done; {reason}"


def _mend(finished: ComparisonPlan, folder: Path) -> str:
    """How to continue: with the same command, unless it would fail again."""
    infos = []
    for place in finished.failed:
        with suppress(FolderError):
            infos.append(run_folder.info(folder / place))
    is_final = len(infos) == len(finished.failed) and all(info.get("replays") for info in infos)
    return str(infos[0]["mend"]) if infos and is_final else _repeat(finished)


def _repeat(current: ComparisonPlan) -> str:
    return f"finished runs are kept; the same command continues: {current.command}"


def _say_stopped(session: Session) -> None:
    """Print how to continue, before the interrupt ends the command."""
    print(f"stopped  {_repeat(session.plan)}", file=sys.stderr)
    if session.options.json:
        facts: dict[str, Any] = {"status": "stopped", "failed": [], "report": None, "verdict": []}
        session.options.answer({**_counts(session.plan, session), **facts})


def _counts(current: ComparisonPlan, session: Session) -> dict[str, Any]:
    done = sum(plan.is_done(session.folder / cell.folder, cell.digest) for cell in current.cells)
    return {"comparison": str(session.folder), "cells": len(current.cells), "done": done}
