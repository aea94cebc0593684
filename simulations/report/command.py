"""`fedkd report`: gathers runs, judges them again and writes the report."""

import shlex
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulations.compare.verdict import Verdict
from simulations.options import Options
from simulations.report import closing, files, gather


@dataclass(frozen=True)
class Request:
    """What the command line says beside the options of all verbs."""

    runs: Sequence[str]
    metric: str | None = None
    baseline: str | None = None
    target: float | None = None
    open: bool = False


def main(request: Request, options: Options) -> int:
    """Write the report and say where it is. A run that does not count is told, and no error."""
    from simulations.compare import judging

    wanted = gather.Wanted(request.metric, request.baseline, request.target)
    question, found = gather.collect(request.runs, options.runs, wanted, _command(request, options))
    judged = judging.judge(question, found)
    written = files.write(judged, gather.place(request.runs, options.runs, options.out))
    page = written[0]
    if not (options.json and options.quiet):
        lines = [*closing.screen(judged), f"report  {page}"]
        print("\n".join(lines), file=sys.stderr if options.json else sys.stdout)
    options.answer(_summary(judged, page))
    if request.open:
        webbrowser.open(Path(page).resolve().as_uri())
    return 0


def _summary(judged: Verdict, page: Path) -> dict[str, object]:
    table = closing.table(judged)
    return {
        "report": str(page),
        "metric": str(judged.question.metric),
        "baseline": judged.question.baseline,
        "verdict": list(judged.sentences),
        "cautions": list(judged.cautions),
        "table": [dict(zip(table.headings, row, strict=True)) for row in table.rows],
        "failed": [f"{member.name}: {member.reason}" for member in judged.failed],
    }


def _command(request: Request, options: Options) -> str:
    """The line that makes it again."""
    asked: dict[str, object] = {"--metric": request.metric, "--baseline": request.baseline, "--target": request.target}
    asked |= {"--runs": None if options.runs == Options.runs else options.runs, "--out": options.out}
    flags = [word for flag, value in asked.items() if value is not None for word in (flag, str(value))]
    return shlex.join(["fedkd", "report", *request.runs, *flags])
