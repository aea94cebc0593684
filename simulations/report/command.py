"""`fedkd report`: gathers runs, analyses them again and writes the report."""

import shlex
import sys
import webbrowser
from pathlib import Path

from simulations.analysis.result import Verdict
from simulations.report import files, gather, summary_table
from simulations.run.options import Report


def main(options: Report) -> int:
    """Write the report and print its path. Runs that do not count are listed, without an error."""
    from simulations.analysis import analyse

    choices = gather.Choices(options.metric, options.baseline, options.target)
    question, runs = gather.collect(options.places, options.runs, choices, _command(options))
    verdict = analyse.analyse(question, runs)
    written = files.write(verdict, gather.place(options.places, options.runs, options.out))
    page = written[0]
    if not (options.json and options.quiet):
        lines = [*summary_table.screen(verdict), f"report  {page}"]
        print("\n".join(lines), file=sys.stderr if options.json else sys.stdout)
    options.answer(_summary(verdict, page))
    if options.open:
        webbrowser.open(Path(page).resolve().as_uri())
    return 0


def _summary(verdict: Verdict, page: Path) -> dict[str, object]:
    table = summary_table.table(verdict)
    return {
        "report": str(page),
        "metric": str(verdict.question.metric),
        "baseline": verdict.question.baseline,
        "verdict": list(verdict.sentences),
        "cautions": list(verdict.cautions),
        "table": [dict(zip(table.headings, row, strict=True)) for row in table.rows],
        "failed": [f"{run.name}: {run.reason}" for run in verdict.failed],
    }


def _command(options: Report) -> str:
    """The command that repeats the report."""
    flags = options.flags("metric", "baseline", "target", "runs", "out")
    return shlex.join(["fedkd", "report", *options.places, *flags])
