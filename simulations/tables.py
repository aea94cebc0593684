"""Tables of docs/results.md: `python -m simulations.tables NAME` plays what is missing of a comparison and prints it.

A comparison is a file of conf/comparison: words that all runs share, settings, methods, seeds, and columns. Its cells
are ordinary runs in folders named by what decides their results: a table can be continued, and tables share runs.
"""

import argparse
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd import compose, ledger, plainyaml
from fedkd.errors import ConfigError, FedkdError
from simulations import run_folder

_KEYS = {"base", "settings", "methods", "seeds", "columns"}
_RULES: Mapping[str, Callable[[list[float]], float]] = {
    "last": lambda values: values[-1],
    "last5": lambda values: statistics.fmean(values[-5:]),
    "last10": lambda values: statistics.fmean(values[-10:]),
    "top5": lambda values: statistics.fmean(sorted(values)[-5:]),
    "best": max,
    "median": statistics.median,
    "sum": math.fsum,
}


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    setting: str
    method: str
    seed: int
    words: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Comparison:
    """What a file of conf/comparison says; `columns` maps a title to a path in the ledger and a rule over rounds."""

    name: str
    cells: tuple[Cell, ...]
    columns: Mapping[str, tuple[str, str]]


def load(name: str, runs: Path) -> Comparison:
    """The comparison `name`. Raises ConfigError for a file that does not say what it must, or words that do not fit."""
    path = compose.CONF / "comparison" / f"{name}.yaml"
    where = f"conf/comparison/{name}.yaml"
    try:
        found: Any = plainyaml.read(path.read_text(encoding="utf-8"), where).plain
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"there is no comparison '{name}'", where=where, mend=f"known: {known}") from None
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise ConfigError("a comparison has exactly these keys", where=where, mend=", ".join(sorted(_KEYS)))
    columns = {title: _column(text, where) for title, text in found["columns"].items()}
    return Comparison(name, tuple(_cells(found, runs)), columns)


def _column(text: str, where: str) -> tuple[str, str]:
    path, _, rule = text.partition(" ")
    if rule not in _RULES:
        raise ConfigError(f"column '{text}' has no rule", where=where, mend=f"PATH RULE, rules: {', '.join(_RULES)}")
    return path, rule


def _cells(found: Mapping[str, Any], runs: Path) -> Iterator[Cell]:
    for setting, its in found["settings"].items():
        for method, own in found["methods"].items():
            for seed in found["seeds"]:
                words = [*shlex.split(found["base"]), *shlex.split(its or ""), *shlex.split(own), f"seed={seed}"]
                resolved = compose.resolve(words)
                folder = runs / f"{resolved.config.strategy['name']}-{resolved.digest()[:12]}"
                yield Cell(setting, method, seed, (*words, "engine=inline"), folder)


def play(cell: Cell) -> None:
    """Run a cell, or go on with it; one that is done is left alone."""
    state = run_folder.state(cell.folder) if cell.folder.exists() else None
    if state == "done":
        return
    verb = ["run", *cell.words, "--name", cell.folder.name] if state is None else ["resume", str(cell.folder)]
    command = [sys.executable, "-m", "simulations.cli", *verb, "--runs", str(cell.folder.parent), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"failed  {shlex.join(cell.words)}\n{done.stderr.strip()[-600:]}", file=sys.stderr, flush=True)
    else:
        print(f"done    {shlex.join(cell.words)}", file=sys.stderr, flush=True)


def figure(folder: Path, path: str, rule: str) -> float | None:
    """A figure of one run, None if no round has it.

    `clients.mean` and the like are read below `accuracy`, in percent; `forgetting.inside` too; `server.depth` and
    `seconds.clients` (of timings.jsonl) as they are; `bytes.up` in megabytes, all kinds together.
    """
    first, _, rest = path.partition(".")
    if first == "seconds":
        return value(ledger.rows(folder / "timings.jsonl"), rest, rule)
    rows = ledger.rows(folder / "metrics.jsonl")
    if first == "bytes":
        return _RULES[rule]([sum(row["bytes"][rest].values()) / 1e6 for row in rows]) if rows else None
    if first in ("server", "drift"):
        return value(rows, path, rule)
    found = value(rows, path if first == "forgetting" else f"accuracy.{path}", rule)
    return None if found is None else 100 * found


def value(rows: Sequence[ledger.Row], path: str, rule: str) -> float | None:
    """What a rule makes of the rounds that have a number at `path`; None if none has."""
    values = [found for row in rows if (found := _at(row, path)) is not None]
    return _RULES[rule](values) if values else None


def _at(row: Any, path: str) -> float | None:
    for part in path.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return float(row) if isinstance(row, int | float) else None


def markdown(comparison: Comparison) -> str:
    """A table for each setting: of each method the mean over seeds, and the seeds' own values in their order."""
    parts = []
    for setting in dict.fromkeys(cell.setting for cell in comparison.cells):
        lines = [f"**{setting}**", "", "| method | " + " | ".join(comparison.columns) + " | seconds a run |"]
        lines.append("|---" * (len(comparison.columns) + 2) + "|")
        cells = [cell for cell in comparison.cells if cell.setting == setting]
        for method in dict.fromkeys(cell.method for cell in cells):
            lines.append(_line(method, [cell for cell in cells if cell.method == method], comparison.columns))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _line(method: str, cells: Sequence[Cell], columns: Mapping[str, tuple[str, str]]) -> str:
    done = [cell.folder for cell in cells if cell.folder.exists() and run_folder.state(cell.folder) == "done"]
    found = [[figure(folder, *column) for folder in done] for column in columns.values()]
    texts = [_summary([each for each in values if each is not None]) for values in found]
    seconds = [sum(row["total"] for row in ledger.rows(folder / "timings.jsonl")) for folder in done]
    missing = f" ({len(done)} of {len(cells)} runs)" if len(done) < len(cells) else ""
    return f"| {method}{missing} | " + " | ".join(texts) + f" | {statistics.fmean(seconds) if seconds else 0:.0f} |"


def _summary(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    each = " / ".join(f"{found:.2f}" for found in values)
    return f"**{statistics.fmean(values):.2f}** ({each})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.tables", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a file of conf/comparison")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; each takes a core")
    parser.add_argument("--only-print", action="store_true", help="play nothing")
    options = parser.parse_args(argv)
    try:
        comparison = load(options.name, options.runs)
        if not options.only_print:
            with ThreadPoolExecutor(options.jobs) as pool:
                list(pool.map(play, comparison.cells))
    except FedkdError as error:
        print(f"error  {error}", file=sys.stderr)
        return 2
    print(markdown(comparison))
    return 0


if __name__ == "__main__":
    sys.exit(main())
