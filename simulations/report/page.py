"""report.html: one self-contained file. Names come from files and users, so all text is escaped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import fedkd
from fedkd import plain_text
from simulations.analysis.result import Verdict
from simulations.report import published, run_tables, setting, summary_table, vega
from simulations.report.chart import Chart
from simulations.report.summary_table import Table

_HERE = Path(__file__).parent
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, heading, charts and tables."""

    id: str
    title: str
    parts: Sequence[Chart | Table]

    @property
    def placed(self) -> list[tuple[Chart | Table, bool]]:
        """The parts in reading order, each with whether it takes the whole width of a wide page; else two share it."""
        placed: list[tuple[Chart | Table, bool]] = []
        parts = list(self.parts)
        while parts:
            row = parts[: 1 if parts[0].is_wide or len(parts) < 2 or parts[1].is_wide else 2]
            placed += [(part, len(row) == 1) for part in row]
            parts = parts[len(row) :]
        return placed


def render(verdict: Verdict, charts: Sequence[Chart]) -> str:
    """The page. It loads nothing from elsewhere."""
    import jinja2

    loader = jinja2.FileSystemLoader(_HERE)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    return environment.get_template("page.html").render(
        verdict=verdict,
        facts=summary_table.facts(verdict),
        closing=summary_table.table(verdict),
        sections=sections(verdict, {chart.name: chart for chart in charts}),
        charts=embedded(charts),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        behaviour=(_HERE / "page.js").read_text(encoding="utf-8"),
        vega=vega.script() if charts else "",
        version=fedkd.__version__,
        made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    )


def sections(verdict: Verdict, charts: dict[str, Chart]) -> list[Section]:
    """The sections in reading order, without empty ones."""

    def some(*names: str) -> list[Chart]:
        return [charts[name] for name in names if name in charts]

    figures = published.table(verdict)
    shared, of_methods = setting.shared(verdict), setting.of_methods(verdict)
    parts: list[Chart | Table] = [
        *shared[:1],
        *setting.provenance(verdict),
        *shared[1:],
        *some("partition"),
        *of_methods,
    ]
    all_sections = [
        Section("setting", "Setting", parts),
        Section("ranking", "Ranking and statistics", some("differences", "ranks")),
        Section("published", "Published figures", [figures] if figures else []),
        Section("curves", "Accuracy", some("curves", "pareto")),
        Section("clients", "Clients", some("clients", "gain")),
        Section("drift", "Drift and forgetting", some("drift", "forgetting")),
        Section("knowledge", "Knowledge", some("knowledge", "matrices", "classes")),
        Section("cost", "Cost", some("seconds", "bytes")),
        Section("runs", "Runs", _of_runs(verdict)),
    ]
    return [section for section in all_sections if section.parts]


def embedded(charts: Sequence[Chart]) -> Any:
    """The charts as JSON that no text in them can break out of."""
    from markupsafe import Markup

    specs = {
        chart.name: {
            "spec": chart.spec,
            "least": chart.least,
            "most": chart.most,
            "square": chart.square,
            "margin": chart.margin,
            "axes": {name: {"field": field, "title": title} for name, (field, title) in chart.axes.items()},
        }
        for chart in charts
    }
    looks = {theme: vega.look(theme) for theme in ("light", "dark")}
    text = json.dumps(
        {"charts": specs, "looks": looks, "gap": vega.GAP}, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return Markup(text.translate(_ESCAPES))


def _shown(value: Any) -> Any:
    """A value of the page; text from files without control characters that could disguise it."""
    return plain_text.printable(value, keep="\n") if type(value) is str else value


def _of_runs(verdict: Verdict) -> list[Table]:
    failures = run_tables.failure_table(verdict)
    return [run_tables.run_table(verdict), *([replace(failures, title="Failures")] if failures else [])]
