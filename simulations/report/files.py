"""Writes a report's files atomically: older files are replaced last, or kept."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from simulations.analysis.result import Verdict
from simulations.report import clients, costs, knowledge, page, results, tables, vega
from simulations.report.chart import Chart
from simulations.run import run_folder

# By name, in reading order. Other pictures in the folder are the user's.
_CHARTS: Mapping[str, Callable[[Verdict], Chart | None]] = {
    "differences": results.differences,
    "ranks": results.ranks,
    "curves": results.curves,
    "pareto": results.pareto,
    "clients": clients.distribution,
    "gain": clients.gains,
    "partition": clients.partitions,
    "drift": knowledge.drift,
    "forgetting": knowledge.forgetting,
    "knowledge": knowledge.scalars,
    "matrices": knowledge.matrices,
    "classes": knowledge.lists,
    "seconds": costs.seconds,
    "bytes": costs.traffic,
}


def write(verdict: Verdict, folder: Path) -> list[Path]:
    """report.html, report.md, table.csv, table.tex, setting.tex, timings.csv and figures/*.svg.

    It writes all files before it replaces any, so a full disk or an error leaves the old report whole. Raises
    FolderError if the folder cannot be written.
    """
    charts = drawn(verdict)
    texts = {
        "report.html": page.render(verdict, charts),
        "report.md": tables.markdown(verdict, charts),
        "table.csv": tables.comma_separated(verdict),
        "table.tex": tables.latex(verdict),
        "setting.tex": tables.setting_latex(verdict),
        "timings.csv": tables.timings(verdict),
        **{f"figures/{chart.name}.svg": vega.svg(chart) for chart in charts},
    }
    with run_folder.writing(folder):
        _replace(folder, texts)
    return [folder / name for name in texts]


def drawn(verdict: Verdict) -> list[Chart]:
    """All charts that have data, in reading order."""
    return [chart for draw in _CHARTS.values() if (chart := draw(verdict)) is not None]


def _replace(folder: Path, texts: Mapping[str, str]) -> None:
    written = []
    try:
        for name, text in texts.items():
            written.append(_beside(folder / name))
            _write(written[-1], text)
    except BaseException:
        for temporary in written:
            with suppress(OSError):
                temporary.unlink()
        raise
    for name, temporary in zip(texts, written, strict=True):
        os.replace(temporary, folder / name)
    for old in _outdated(folder, texts):
        with suppress(OSError):
            old.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _outdated(folder: Path, texts: Mapping[str, str]) -> Iterator[Path]:
    """Figures of an earlier report that this one does not have."""
    for name in _CHARTS:
        if f"figures/{name}.svg" not in texts:
            yield folder / "figures" / f"{name}.svg"
