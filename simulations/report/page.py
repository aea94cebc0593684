"""report.html: one file with everything in it. Names come from files and users, so all text is escaped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fedkd
from fedkd import plaintext
from simulations.compare.verdict import Verdict
from simulations.report import closing, members, published, vega
from simulations.report.chart import Chart
from simulations.report.closing import Table

_HERE = Path(__file__).parent
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, heading, charts and tables."""

    id: str
    title: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    about: str = ""


def render(verdict: Verdict, charts: Sequence[Chart]) -> str:
    """The page. Nothing in it is loaded from elsewhere."""
    import jinja2

    loader = jinja2.FileSystemLoader(_HERE)
    world = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    return world.get_template("page.html").render(
        verdict=verdict,
        facts=closing.facts(verdict),
        closing=closing.table(verdict),
        sections=sections(verdict, {chart.name: chart for chart in charts}),
        charts=embedded(charts),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        behaviour=(_HERE / "page.js").read_text(encoding="utf-8"),
        vega=vega.script() if charts else "",
        version=fedkd.__version__,
        made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    )


def sections(verdict: Verdict, charts: dict[str, Chart]) -> list[Section]:
    """In reading order, without those that have nothing to show."""

    def some(*names: str) -> list[Chart]:
        return [charts[name] for name in names if name in charts]

    def tables(*found: Table | None) -> list[Table]:
        return [table for table in found if table is not None]

    every = [
        Section("ranking", "Ranking and statistics", some("ranks", "differences")),
        Section("published", "Beside published figures", tables=tables(published.table(verdict))),
        Section("curves", "Accuracy", some("curves", "pareto")),
        Section("clients", "Clients", some("clients", "gain")),
        Section("partition", "Data", some("partition")),
        Section("drift", "Drift and forgetting", some("drift", "forgetting")),
        Section("knowledge", "Knowledge", some("knowledge", "matrices", "classes")),
        Section("cost", "Cost", some("seconds", "bytes")),
        Section("runs", "Runs", tables=_of_runs(verdict)),
        Section("environment", "Environment", tables=tables(members.environments(verdict))),
    ]
    return [section for section in every if section.charts or section.tables]


def embedded(charts: Sequence[Chart]) -> Any:
    """The charts as JSON that no text in them can break out of."""
    from markupsafe import Markup

    specs = {
        chart.name: {
            "spec": chart.spec,
            "least": chart.least,
            "most": chart.most,
            "margin": chart.margin,
            "axes": {name: {"field": field, "title": title} for name, (field, title) in chart.axes.items()},
        }
        for chart in charts
    }
    looks = {theme: vega.look(theme) for theme in ("light", "dark")}
    found = {"charts": specs, "looks": looks, "gap": vega.GAP}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def _shown(value: Any) -> Any:
    """A value of the page: text from files without what could make it read as something else."""
    return plaintext.printable(value, keep="\n") if type(value) is str else value


def _of_runs(verdict: Verdict) -> list[Table]:
    titled = (
        ("Every run", members.runs(verdict)),
        ("What differs in their configurations", members.configuration(verdict)),
        ("Failures", members.failures(verdict)),
    )
    return [Table(table.headings, table.rows, title) for title, table in titled if table is not None]
