"""The figures of the documents, measured again: a command for a night, not part of the suite.

    python tests/nightly/figures.py --list
    python tests/nightly/figures.py --only first-run,feddf-digits
    python tests/nightly/figures.py --only fedgen-mnist/FedAvg/0

The documents are the only source. A comment above a table or a block of output says what it is a figure of:

    <!-- figures: fedgen-mnist
    command: fedkd run preset=fedgen-mnist {row} seed={seed}
    rows: {FedAvg: strategy=fedavg}        # cells with which a row begins, joined by " | ": words
    columns:                               # heads of columns: metrics as `fedkd compare` knows them
      top-5, seeds 0 / 1 / 2: clients.pooled top5
    seeds: [0, 1, 2]                       # in the order of `a / b / c` within a cell
    tolerance: 0.05                        # in the unit of the table; percent for accuracies
    -->

Cells and heads are written without ** and backticks. Above a block of output (```) the marker has `command`, and if
wanted `tolerance` and `skip`, a regular expression of what may differ beside clock times. The block is the end of what
the command prints, line by line.

Every run is made in a folder of its own that is deleted afterwards; a run serves all figures that have its command.
Exit code 0: all figures agree; 1: some do not, or a run failed.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_MARKER = re.compile(r"<!-- figures: (?P<name>[\w-]+)\n(?P<body>.*?)-->\n(?P<rest>.*)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?!\w)")  # not the digits of a name or a hash
_CLOCK = re.compile(r"\b\d+:\d\d(?::\d\d)?\b|\b\d{4}-\d{4}-")  # durations, and the date in a run's name
_FIELDS = {"command", "rows", "columns", "seeds", "tolerance", "skip"}


class Broken(Exception):
    """A marker that does not fit what is below it."""


@dataclass(frozen=True)
class Figure:
    """What a document says a command gives: a number by metric, or the end of its output."""

    name: str
    command: str
    tolerance: float
    metric: str = ""
    expected: float = 0.0
    lines: tuple[str, ...] = ()
    skip: str = ""

    def told(self) -> str:
        """For --list."""
        what = f"{self.metric} = {self.expected:g} ± {self.tolerance:g}" if self.metric else f"{len(self.lines)} lines"
        return f"{self.name}: {what}\n    {self.command}"


def of_documents(root: Path = ROOT) -> list[Figure]:
    """Every figure that is marked in README.md and docs. Raises Broken."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    found = [figure for page in pages for figure in of_text(page.read_text(encoding="utf-8"))]
    names = [figure.name for figure in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Broken(f"names are given twice: {', '.join(twice)}")
    return found


def of_text(text: str) -> Iterator[Figure]:
    """The figures of one page."""
    while found := _MARKER.search(text):
        name, text = found["name"], found["rest"]
        marker = yaml.safe_load(found["body"]) or {}
        if strangers := set(marker) - _FIELDS or {"command"} - set(marker):
            raise Broken(f"{name}: {', '.join(sorted(strangers))} is unknown or missing")
        yield from _of_table(name, marker, text) if "columns" in marker else _of_block(name, marker, text)


def _of_block(name: str, marker: Mapping[str, Any], text: str) -> Iterator[Figure]:
    block = re.match(r"```\w*\n(.*?)\n```", text, re.DOTALL)
    if block is None:
        raise Broken(f"{name}: no block of output follows")
    lines, tolerance = tuple(block[1].splitlines()), float(marker.get("tolerance", 0))
    yield Figure(name, marker["command"], tolerance, lines=lines, skip=marker.get("skip", ""))


def _of_table(name: str, marker: Mapping[str, Any], text: str) -> Iterator[Figure]:
    lines = text.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith("|")), None)
    if start is None:
        raise Broken(f"{name}: no table follows")
    end = next((place for place in range(start, len(lines)) if not lines[place].startswith("|")), len(lines))
    head, _, *rows = (_cells(line) for line in lines[start:end])
    seeds = marker.get("seeds", [0])
    for label, words in marker.get("rows", {"": ""}).items():
        row = _row(rows, label, name)
        for column, metric in marker["columns"].items():
            if column not in head:
                raise Broken(f"{name}: the table has no column '{column}', but {', '.join(head)}")
            for seed, value in zip(seeds, _by_seed(row[head.index(column)], len(seeds), name), strict=True):
                yield Figure(
                    "/".join(filter(None, (name, label.replace(" | ", "/"), str(seed), metric.replace(" ", ".")))),
                    " ".join(marker["command"].format(row=words, seed=seed).split()),
                    float(marker.get("tolerance", 0.05)),
                    metric,
                    value,
                )


def _cells(line: str) -> list[str]:
    return [re.sub(r"[*`]", "", cell).strip() for cell in line.strip().strip("|").split("|")]


def _row(rows: Sequence[list[str]], label: str, name: str) -> list[str]:
    wanted = label.split(" | ")
    found = [row for row in rows if row[: len(wanted)] == wanted]
    if len(found) != 1:
        raise Broken(f"{name}: {len(found)} rows begin with '{label}'")
    return found[0]


def _by_seed(cell: str, count: int, name: str) -> list[float]:
    """The numbers of a cell: `a / b / c`, or these in brackets after their mean."""
    within = re.search(r"\((.*)\)", cell)
    found = [float(number) for number in _NUMBER.findall(within[1] if within else cell)]
    if len(found) != count:
        raise Broken(f"{name}: '{cell}' has {len(found)} numbers, and there are {count} seeds")
    return found


def measure(figure: Figure) -> list[str]:
    """What differs from the document; nothing, if it agrees."""
    code, output, values = _played(figure.command, _metrics_of(figure.command))
    if code:
        return [f"exit code {code}", *output[-3:]]
    if figure.lines:
        return compare(figure.lines, output, figure.tolerance, figure.skip)
    value = values[figure.metric]
    if value is not None and abs(value - figure.expected) <= figure.tolerance:
        return []
    return [f"{figure.metric}: {figure.expected:g} in the document, {value} measured"]


@cache
def _metrics_of(command: str) -> tuple[str, ...]:
    return tuple(sorted({figure.metric for figure in of_documents() if figure.command == command} - {""}))


@cache
def _played(command: str, metrics: Sequence[str]) -> tuple[int, list[str], Mapping[str, float | None]]:
    """Exit code, printed lines and metrics of a command, in percent where they are fractions."""
    from simulations.analysis import metric, run_record

    words = shlex.split(command)
    with tempfile.TemporaryDirectory(prefix="figures-") as scratch:
        more = ["--out", str(Path(scratch, "run"))] if metrics else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        line = [sys.executable, "-m", "simulations.cli"]
        done = subprocess.run(
            [*line, *words[1:], *more], cwd=scratch, env=environment, text=True, capture_output=True, check=False
        )
        output = [*done.stderr.splitlines(), *done.stdout.splitlines()]
        values: dict[str, float | None] = {}
        if metrics and not done.returncode:
            run = run_record.read("", "", 0, Path(scratch, "run"))
            for text in metrics:
                found = metric.parse(text)
                value = found.of(run)
                values[text] = None if value is None else value * found.scale
        return done.returncode, output, values


def compare(shown: Sequence[str], printed: Sequence[str], tolerance: float, skip: str = "") -> list[str]:
    """Where a block of a document is not the end of what was printed; numbers may differ by `tolerance`."""
    begin = next((place for place, line in enumerate(printed) if _words(line, skip) == _words(shown[0], skip)), None)
    if begin is None:
        return [f"nothing printed is like the first line shown: {shown[0]}"]
    found, rest = [], [line for line in printed[begin:] if line.strip()]
    for line in shown:
        place = next((n for n, each in enumerate(rest) if _words(each, skip) == _words(line, skip)), None)
        if place is None:
            found.append(f"shown, not printed: {line}")
            continue
        found += [f"printed, not shown: {each}" for each in rest[:place]]
        pairs = zip(_numbers(line, skip), _numbers(rest[place], skip), strict=True)
        if any(abs(one - other) > tolerance + 1e-9 for one, other in pairs):
            found.append(f"shown:   {line}\n        printed: {rest[place]}")
        rest = rest[place + 1 :]
    return found + [f"printed, not shown: {each}" for each in rest]


def _words(line: str, skip: str) -> str:
    """A line without its numbers, clock times and widths of columns."""
    return " ".join(_NUMBER.sub("#", _bare(line, skip)).split())


def _numbers(line: str, skip: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(_bare(line, skip))]


def _bare(line: str, skip: str) -> str:
    line = _CLOCK.sub("~", line)
    return re.sub(skip, "~", line) if skip else line


def main() -> int:
    """Measure the chosen figures and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="A,B", help="figures whose name begins so")
    parser.add_argument("--list", action="store_true", help="print figures and commands, run nothing")
    asked = parser.parse_args()
    only = tuple(asked.only.split(","))
    chosen = [figure for figure in of_documents() if figure.name.startswith(only)]
    if asked.list:
        print("\n".join(figure.told() for figure in chosen))
        return 0
    missed = 0
    for figure in chosen:
        found = measure(figure)
        missed += bool(found)
        print(f"{figure.name:60} {'DIFFERS' if found else 'agrees'}" + "".join(f"\n    {line}" for line in found))
    print(f"{len(chosen) - missed} of {len(chosen)} figures agree")
    return int(bool(missed))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
