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
from simulations.analysis.plan import Cell, Plan
from simulations.compare import calibrate, progress_table, worker_pool
from simulations.compare.progress_table import Progress, ProgressDisplay
from simulations.compare.tune import Tuning
from simulations.compare.worker import CellResult
from simulations.run import run_folder
from simulations.run.options import Options
from simulations.run.run_folder import RunFolder

if TYPE_CHECKING:
    from simulations.analysis.result import Verdict

NOT_ALL = 4  # the exit code if a run is missing


@dataclass(frozen=True, kw_only=True)
class Session:
    """The cells of one command, their folder, and its options."""

    plan: Plan
    tasks: Mapping[Cell, Resolved]  # the cells of the plan
    tuning: Tuning
    folder: Path
    jobs: int
    options: Options

    def show(self) -> int:
        """--dry-run."""
        tasks = {**self.tuning.trials(), **self.tasks}
        return calibrate.show(self.plan, tasks, self.folder, self.jobs, self.options)

    def play(self) -> int:
        """Run, analyse, report; gives the exit code. Raises FedkdError; KeyboardInterrupt only when all is saved."""
        return _play(self)


def _play(session: Session) -> int:
    held = run_folder.hold(session.folder)
    shown = progress_table.make(session.options, session.folder / "log.txt")
    try:
        if note := calibrate.seeds_note(session.plan):
            shown.say(f"note    {note}")
        found = _run(session, held, shown)
        shown.close()
        return _conclude(found, session)
    except KeyboardInterrupt:
        shown.close()
        _say_stopped(session)
        raise
    finally:
        shown.close()
        held.release()


def _run(session: Session, held: RunFolder, shown: ProgressDisplay) -> Plan:
    """Run the trials, choose, run the cells; gives the plan with the choices and the failures."""
    session.plan.write(held)
    found, tasks, trials = session.plan, session.tasks, session.tuning.trials()
    if trials:
        _play_cells(trials, session, shown, f"{session.folder.name}, tuning")
        rows = session.tuning.rows(session.folder)
        tasks = plan.cells(session.tuning.grid(rows), found.seeds)
        found = replace(found, tuned=rows, cells=tuple(tasks))
        found.write(held)
        for line in tuned.lines() if (tuned := choices.of(found.tuning, rows)) else ():
            shown.say(f"tuned   {line}")
    session = replace(session, plan=found)
    outcomes = _play_cells(tasks, session, shown, session.folder.name)
    found = replace(found, failed={place: each.error for place, each in outcomes.items() if each.status == "failed"})
    found.write(held)
    return found


def _play_cells(
    tasks: Mapping[Cell, Resolved], session: Session, shown: ProgressDisplay, name: str
) -> dict[str, CellResult]:
    """Run the missing ones among some cells. Raises FolderError if the disk is full."""
    folder = session.folder
    missing = {cell: its for cell, its in tasks.items() if not plan.is_done(folder / cell.folder, cell.digest)}
    shown.begin(name, [_progress(cell, folder, tasks[cell], cell not in missing) for cell in tasks], session.jobs)
    if session.options.debug:
        outcomes = worker_pool.play_here(missing, folder, shown)
    else:
        worker_pool.warm_up()
        alone = _downloading(missing)  # two processes must not fetch the same files
        outcomes = worker_pool.play({cell: missing.pop(cell) for cell in alone}, folder, 1, shown)
        outcomes |= worker_pool.play(missing, folder, session.jobs, shown)
    shown.close()
    shown.say(f"done    {shown.summary()}")
    if any(each.is_disk_full for each in outcomes.values()):
        mend = f"free some space, then repeat the same command:  {session.plan.command}"
        raise FolderError(run_folder.FULL, where=str(folder), mend=mend)
    return outcomes


def _downloading(tasks: Mapping[Cell, Resolved]) -> list[Cell]:
    """The first cell of each data set that may need a download."""
    first: dict[str, Cell] = {}
    for cell, its in tasks.items():
        if its.config.data.download:
            first.setdefault(its.config.data.name, cell)
    return list(first.values())


def _progress(cell: Cell, folder: Path, resolved: Resolved, is_done: bool) -> Progress:
    state = "done" if is_done else "waiting"
    return Progress(cell, folder / cell.folder / "metrics.jsonl", resolved.config.rounds, state)


def _conclude(found: Plan, session: Session) -> int:
    """Print the verdict and write the report; gives the exit code."""
    from simulations import report
    from simulations.analysis import analyse

    folder, options = session.folder, session.options
    judged = analyse.judge(plan.question(found, folder.name), plan.members(found, folder))
    paths = report.write(judged, folder)
    page = next((path for path in paths if path.suffix == ".html"), folder)
    if not (options.json and options.quiet):
        lines = ["", *report.screen(judged), f"report  {page}"]
        print("\n".join(lines), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        failed = [f"{member.name}: {member.reason}" for member in judged.failed]
        tuned = judged.question.tuned
        done = {"status": "failed" if failed else "done", "failed": failed}
        done |= {"tuned": list(tuned.lines())} if tuned else {}
        options.answer({**_counts(found, session), **done, "report": str(page), "verdict": list(judged.sentences)})
    if judged.failed:
        print(f"error  {_missing(judged, found)}\n       {_mend(found, folder)}", file=sys.stderr)
    return NOT_ALL if judged.failed else 0


def _missing(judged: "Verdict", found: Plan) -> str:
    first = judged.failed[0]
    count = "none" if len(judged.failed) == len(found.cells) else f"only {len(found.cells) - len(judged.failed)}"
    why = progress_table.one_line(f"{first.name}: {first.reason}")
    return f"comparison: {count} of {len(found.cells)} runs are done; {why}"


def _mend(found: Plan, folder: Path) -> str:
    """How to continue: with the same command, unless it would fail again."""
    told = []
    for place in found.failed:
        with suppress(FolderError):
            told.append(run_folder.info(folder / place))
    is_final = len(told) == len(found.failed) and all(info.get("replays") for info in told)
    return str(told[0]["mend"]) if told and is_final else _again(found)


def _again(found: Plan) -> str:
    return f"finished runs are kept; the same command continues: {found.command}"


def _say_stopped(session: Session) -> None:
    """Print how to continue, before the interrupt ends the command."""
    print(f"stopped  {_again(session.plan)}", file=sys.stderr)
    if session.options.json:
        facts: dict[str, Any] = {"status": "stopped", "failed": [], "report": None, "verdict": []}
        session.options.answer({**_counts(session.plan, session), **facts})


def _counts(found: Plan, session: Session) -> dict[str, Any]:
    done = sum(plan.is_done(session.folder / cell.folder, cell.digest) for cell in found.cells)
    return {"comparison": str(session.folder), "cells": len(found.cells), "done": done}
