"""`fedkd report`: gathers runs, analyses them again and writes the report."""

import shlex
import sys
import webbrowser
from pathlib import Path

from simulations.analysis.result import Verdict
from simulations.report import files, gather, summary_table
from simulations.run.options import Report


def main(asked: Report) -> int:
    """Write the report and print its path. Runs that do not count are listed, without an error."""
    from simulations.analysis import analyse

    wanted = gather.Wanted(asked.metric, asked.baseline, asked.target)
    question, found = gather.collect(asked.places, asked.runs, wanted, _command(asked))
    judged = analyse.judge(question, found)
    written = files.write(judged, gather.place(asked.places, asked.runs, asked.out))
    page = written[0]
    if not (asked.json and asked.quiet):
        lines = [*summary_table.screen(judged), f"report  {page}"]
        print("\n".join(lines), file=sys.stderr if asked.json else sys.stdout)
    asked.answer(_summary(judged, page))
    if asked.open:
        webbrowser.open(Path(page).resolve().as_uri())
    return 0


def _summary(judged: Verdict, page: Path) -> dict[str, object]:
    table = summary_table.table(judged)
    return {
        "report": str(page),
        "metric": str(judged.question.metric),
        "baseline": judged.question.baseline,
        "verdict": list(judged.sentences),
        "cautions": list(judged.cautions),
        "table": [dict(zip(table.headings, row, strict=True)) for row in table.rows],
        "failed": [f"{member.name}: {member.reason}" for member in judged.failed],
    }


def _command(asked: Report) -> str:
    """The command that repeats it."""
    flags = asked.flags("metric", "baseline", "target", "runs", "out")
    return shlex.join(["fedkd", "report", *asked.places, *flags])
