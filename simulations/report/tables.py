"""The report as text: report.md, table.csv with one row per run, table.tex and setting.tex for papers, timings.csv.

Only timings.csv and report.md contain clock times: equal runs give equal bytes in the two tables.
"""

import csv
import io
import re
from collections.abc import Sequence

from fedkd import plain_text
from simulations.analysis.metric import Metric
from simulations.analysis.result import Verdict
from simulations.report import number_text, published, run_tables, setting, summary_table
from simulations.report.chart import Chart
from simulations.report.summary_table import Table

_UP, _DOWN = Metric("bytes.up", "sum"), Metric("bytes.down", "sum")
_PHASES = ("total", "clients", "server", "evaluation")
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#])")


def markdown(verdict: Verdict, charts: Sequence[Chart]) -> str:
    """The content of the page, with links to the figures in place of the charts."""
    question = verdict.question
    parts = [f"# {_escaped(question.name)}", _escaped(question.about), *map(_escaped, verdict.sentences)]
    parts += [f"- Not concluded: {_escaped(caution)}" for caution in verdict.cautions]
    parts += [_escaped("   ".join(summary_table.facts(verdict))), _piped(summary_table.table(verdict))]
    if settings := [*setting.shared(verdict), *setting.of_methods(verdict), *setting.provenance(verdict)]:
        parts += ["## Setting", *(part for table in settings for part in _titled(table))]
    if (figures := published.table(verdict)) is not None:
        parts += ["## Comparison with published figures", _piped(figures)]
    for chart in charts:
        name = f"figures/{chart.name}.svg"
        parts += [f"## {_escaped(chart.title)}", f"![{_escaped(chart.title)}]({name})", _escaped(chart.summary)]
        if chart.name in ("differences", "ranks") and chart.table:
            parts.append(_piped(chart.table))
    parts += ["## Runs", _piped(run_tables.run_table(verdict))]
    if (failures := run_tables.failure_table(verdict)) is not None:
        parts += ["## Failures", _piped(failures)]
    if question.command:
        parts += ["## Repeat", f"```\n{question.command}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def comma_separated(verdict: Verdict) -> str:
    """A row per run, numbers as measured: fractions and bytes."""
    question, file = verdict.question, io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    columns = {title: m for title, m in summary_table.further(question).items() if m.keys[0] != "bytes"}
    headings = ("setting", "method", "seed", "state", str(question.metric), *columns)
    writer.writerow(map(plain_text.cell, (*headings, "bytes_up", "bytes_down", "reason")))
    for run in run_tables.all_runs(verdict):
        metrics = (question.metric, *columns.values())
        values = [metric.value(run) if run.rows else None for metric in metrics]
        sent = [None if (mb := metric.value(run)) is None else round(1e6 * mb) for metric in (_UP, _DOWN)]
        key = (run.setting, run.method, run.seed, run.state)
        writer.writerow(map(plain_text.cell, (*key, *values, *sent, run.reason)))
    return file.getvalue()


def timings(verdict: Verdict) -> str:
    """A row per run: wall seconds of all its rounds, by phase; they differ each time."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("setting", "method", "seed", *(f"seconds_{phase}" for phase in _PHASES)))
    for run in run_tables.all_runs(verdict):
        seconds = [Metric(f"seconds.{phase}", "sum").value(run) if run.rows else None for phase in _PHASES]
        writer.writerow(map(plain_text.cell, (run.setting, run.method, run.seed, *seconds)))
    return file.getvalue()


def latex(verdict: Verdict) -> str:
    """The summary table for a paper; needs booktabs."""
    table = summary_table.table(verdict).without_clocks()
    columns = "".join("l" if heading in ("setting", "strategy") else "r" for heading in table.headings)
    lines = [f"% {number_text.count(len(run_tables.all_runs(verdict)), 'run')}; \\usepackage{{booktabs}}"]
    lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _ampersands(table.headings), "\\midrule"]
    for index, row in enumerate(table.rows):
        if index and table.headings[0] == "setting" and row[0] != table.rows[index - 1][0]:
            lines.append("\\midrule")
        lines.append(_ampersands(row))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def setting_latex(verdict: Verdict) -> str:
    """The setting for a paper's appendix, without the machine; needs booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for table in (*setting.shared(verdict), *setting.of_methods(verdict)):
        wide = len(table.headings) - 1
        spec = "l" + f"p{{{0.7 / wide:.2f}\\linewidth}}" * wide
        head = [f"% {table.title}"] if table.title else []
        head += [f"\\begin{{tabular}}{{{spec}}}", "\\toprule", _ampersands(table.headings), "\\midrule"]
        parts += [*head, *map(_ampersands, table.rows), "\\bottomrule", "\\end{tabular}", ""]
    return "\n".join(parts) + "\n"


def _titled(table: Table) -> list[str]:
    return [f"### {_escaped(table.title)}" if table.title else "", _escaped(table.note), _piped(table)]


def _ampersands(cells: Sequence[str]) -> str:
    shown = (plain_text.printable(cell) for cell in cells)
    return " & ".join("".join(_TEX.get(sign, sign) for sign in cell) for cell in shown) + r" \\"


def _piped(table: Table) -> str:
    lines = [table.headings, tuple("---" for _ in table.headings), *table.rows]
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", plain_text.printable(" ".join(text.split())))
