"""Shows the progress of a comparison: a table on a terminal, lines in a pipe, nothing with --quiet.

Reads the progress of running cells from their ledgers. Imports no torch.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedkd
from simulations.analysis.plan import Cell
from simulations.compare.cell_process import CellResult
from simulations.run import console_text, progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_AROUND = 7  # lines of the screen around the rows of the table
_LONGEST = 300  # characters of a failure


@dataclass
class Progress:
    """The progress of a cell, read from its ledger."""

    cell: Cell
    ledger: Path  # metrics.jsonl
    num_rounds: int
    state: str = "waiting"  # waiting, running, done, failed, stopped
    rounds: int = 0
    accuracy: float | None = None  # the newest headline
    began: float = 0.0  # monotonic seconds, of this process
    seconds: float = 0.0  # spent by this process
    own_rounds: int = 0  # rounds in these seconds
    _offset: int = 0
    _measured: dict[str, float] = field(default_factory=dict)

    def read(self) -> None:
        """Read the new rows."""
        with suppress(OSError), self.ledger.open("rb") as file:
            if file.seek(0, 2) < self._offset:
                self._offset = 0  # a resume has cut the file
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._offset += len(line)
                    self._take(line)

    def _take(self, line: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            self.rounds = int(row["round"])
            self._measured |= console_text.measured(row["accuracy"])
            self.accuracy = self._measured.get("global", self._measured.get("clients.mean"))


@dataclass
class ProgressDisplay:
    """Shows nothing (--quiet); base of the other displays. Writes every line to a log, as a screen may be lost."""

    log: Path | None = None  # None: no log
    cells: dict[str, Progress] = field(default_factory=dict)  # by folder
    jobs: int = 1
    name: str = ""
    began: float = field(default_factory=time.monotonic)
    reused: int = 0  # cells that were done before

    def begin(self, name: str, cells: Sequence[Progress], jobs: int) -> None:
        """Begin with these cells; some may be done already."""
        self.name, self.jobs, self.began = name, jobs, time.monotonic()
        self.cells = {tracked.cell.folder: tracked for tracked in cells}
        for tracked in cells:
            if tracked.state == "done":
                tracked.read()
        self.reused = self.count("done")
        self.keep(self.head())

    def started(self, cell: Cell) -> None:
        tracked = self.cells[cell.folder]
        tracked.read()
        tracked.state, tracked.began, tracked.own_rounds = "running", time.monotonic(), -tracked.rounds

    def tick(self) -> None:
        """Read the ledgers of running cells."""
        for tracked in self.cells.values():
            if tracked.state == "running":
                tracked.read()
                tracked.seconds = time.monotonic() - tracked.began

    def ended(self, cell: Cell, outcome: CellResult) -> None:
        self.tick()
        tracked = self.cells[cell.folder]
        tracked.state, tracked.own_rounds = outcome.status, tracked.own_rounds + tracked.rounds
        self.keep(self.line(cell, outcome))

    def say(self, line: str) -> None:
        """Show a separate line: a phase, a warning."""
        self.keep(line)

    def keep(self, line: str) -> None:
        """Write a line to the log; ignores a full disk."""
        if self.log is not None:
            with suppress(OSError), self.log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")

    def close(self) -> None:
        """Restore the terminal. Safe to call twice."""

    def count(self, state: str) -> int:
        return sum(tracked.state == state for tracked in self.cells.values())

    def left(self, cells: Iterable[Progress]) -> float | None:
        """Seconds until these cells are done, if all jobs work on them; None while there is no estimate."""
        paces = self._paces()
        if not paces:
            return None
        usual = statistics.fmean(paces.values())
        open_cells = [cell for cell in cells if cell.state in ("waiting", "running")]
        work = sum((cell.num_rounds - cell.rounds) * paces.get(cell.cell.method, usual) for cell in open_cells)
        return work / max(1, min(self.jobs, len(open_cells)))

    def _paces(self) -> dict[str, float]:
        """Seconds per round, by method, measured in this process."""
        seconds: dict[str, float] = {}
        rounds: dict[str, int] = {}
        for tracked in self.cells.values():
            if tracked.seconds:
                method, current = tracked.cell.method, tracked.rounds if tracked.state == "running" else 0
                seconds[method] = seconds.get(method, 0.0) + tracked.seconds
                rounds[method] = rounds.get(method, 0) + tracked.own_rounds + current
        return {method: seconds[method] / count for method, count in rounds.items() if count > 0}

    def summary(self) -> str:
        """`48 of 48 runs in 6:12`."""
        failed = f", {self.count('failed')} failed" if self.count("failed") else ""
        clock = console_text.clock(time.monotonic() - self.began)
        return f"{self.count('done')} of {len(self.cells)} runs{failed} in {clock}"

    def line(self, cell: Cell, outcome: CellResult) -> str:
        """A line for a finished cell."""
        ended = sum(self.count(state) for state in ("done", "failed", "stopped"))
        parts = [f"{outcome.status:<8}{ended}/{len(self.cells)}  {cell.name}"]
        if outcome.status == "failed":
            return "   ".join([*parts, one_line(outcome.error)])
        tracked = self.cells[cell.folder]
        parts += [
            f"round {tracked.rounds}/{tracked.num_rounds}",
            f"accuracy {_number(tracked.accuracy)}",
            console_text.clock(tracked.seconds),
        ]
        left = self.left(self.cells.values())
        return "   ".join(parts + ([f"left {console_text.clock(left)}"] if left else []))

    def head(self) -> str:
        reused = f", {self.reused} done before" if self.reused else ""
        return f"fedkd {fedkd.__version__}  compare {self.name}   {len(self.cells)} runs{reused}, {self.jobs} at a time"


@dataclass
class LineDisplay(ProgressDisplay):
    """For pipes and files: a header, then a line per finished cell."""

    stream: Any = None

    def begin(self, name: str, cells: Sequence[Progress], jobs: int) -> None:
        super().begin(name, cells, jobs)
        self._print(self.head())

    def ended(self, cell: Cell, outcome: CellResult) -> None:
        super().ended(cell, outcome)
        self._print(self.line(cell, outcome))

    def say(self, line: str) -> None:
        super().say(line)
        self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


@dataclass
class TableDisplay(ProgressDisplay):
    """For terminals: a line per setting and method, redrawn in place; never taller than the screen."""

    console: "Console" = None  # type: ignore[assignment]
    failures: list[str] = field(default_factory=list)
    _live: Any = None

    def begin(self, name: str, cells: Sequence[Progress], jobs: int) -> None:
        from rich.live import Live

        self.close()
        super().begin(name, cells, jobs)
        self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop", transient=True)
        self._live.start()
        self._draw()

    def tick(self) -> None:
        super().tick()
        self._draw()

    def ended(self, cell: Cell, outcome: CellResult) -> None:
        super().ended(cell, outcome)
        if outcome.status == "failed":
            self._print(f"failed  {cell.name}: {one_line(outcome.error)}")

    def say(self, line: str) -> None:
        super().say(line)
        self._print(line)

    def _print(self, line: str) -> None:
        from rich.text import Text

        label, space, rest = line.partition(" ")
        self.console.print(Text.assemble((label, "yellow" if label in ("failed", "warn") else "bold"), space + rest))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self.render(self.console.height), refresh=True)

    def render(self, height: int) -> "RenderableType":
        """The table, at most `height` lines tall: if there are too many rows, only running ones."""
        from rich.console import Group
        from rich.text import Text

        rows = list(self._pairs().items())
        running = [row for row in rows if any(tracked.state == "running" for tracked in row[1])]
        shown = rows if len(rows) <= max(1, height - _AROUND) else running[: max(1, height - _AROUND)]
        more = f"{len(rows) - len(shown)} more lines: waiting or done" if len(shown) < len(rows) else ""
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in (self._title(), more)]
        return Group(lines[0], self._grid(shown), *lines[1 : 1 + bool(more)])

    def _title(self) -> str:
        left = self.left(self.cells.values())
        parts = [self.head(), f"done {self.count('done')}"]
        parts += [f"failed {self.count('failed')}"] if self.count("failed") else []
        return "   ".join([*parts, f"left {console_text.clock(left)}"] if left else parts)

    def _grid(self, rows: Sequence[tuple[tuple[str, str], Sequence[Progress]]]) -> "RenderableType":
        from rich import box, table
        from rich.text import Text

        grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("setting", "strategy"):
            grid.add_column(column, no_wrap=True)
        for column in ("seeds", "rounds", "accuracy", "left"):
            grid.add_column(column, justify="right", no_wrap=True)
        for pair, cells in rows:
            grid.add_row(*map(Text, (*pair, *self._row(cells))))
        return grid

    def _pairs(self) -> Mapping[tuple[str, str], list[Progress]]:
        pairs: dict[tuple[str, str], list[Progress]] = {}
        for tracked in self.cells.values():
            pairs.setdefault((tracked.cell.setting, tracked.cell.method), []).append(tracked)
        return pairs

    def _row(self, cells: Sequence[Progress]) -> Iterator[str]:
        done = sum(tracked.state == "done" for tracked in cells)
        accuracies = [tracked.accuracy for tracked in cells if tracked.accuracy is not None]
        failed = sum(tracked.state == "failed" for tracked in cells)
        left = self.left(cells)
        yield f"{done}/{len(cells)}" + (f" ({failed} failed)" if failed else "")
        yield f"{sum(tracked.rounds for tracked in cells)}/{sum(tracked.num_rounds for tracked in cells)}"
        yield _number(statistics.fmean(accuracies) if accuracies else None)
        yield "done" if done == len(cells) else console_text.clock(left) if left else "-"


def one_line(error: str) -> str:
    """An error's text as one line."""
    return " ".join(error.split())[:_LONGEST]


def make(options: Any, log: Path | None = None) -> ProgressDisplay:
    """The display for these options; with --json it is on stderr, so that stdout holds one object."""
    if options.quiet:
        return ProgressDisplay(log=log)
    stream = sys.stderr if options.json else sys.stdout
    console = progress.terminal(stream, options)
    return LineDisplay(stream=stream, log=log) if console is None else TableDisplay(console=console, log=log)


def _number(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.3f}"
