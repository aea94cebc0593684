"""Shows a run: a panel on a terminal, lines in a pipe, nothing with --quiet. Free of torch."""

import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import fedkd
from simulations.run import console_text
from simulations.run.console_text import Head, History, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

REDRAWS = 4  # per second, at most


class Screen:
    """Shows only warnings and the result: --quiet, and the base of the other screens."""

    def __init__(self, result: Any = None, *, verbose: bool = False) -> None:
        self.result = result  # the stream for the last lines; None: nowhere
        self.verbose = verbose
        self.history = History()
        self.head: Head | None = None

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def phase(self, text: str) -> None:
        """A step before the first round: `loading PyTorch`."""

    def begin(self, head: Head, rows: Sequence[Row]) -> None:
        """The rounds begin; `rows` holds the rounds before a resume."""
        self.head = head
        for row in rows:
            self.history.add(row)

    def progress(self, phase: str, done: int, total: int) -> None:
        """The current phase of the round (engine.Watch). Called once per job, so it must be cheap."""

    def round(self, row: Row, seconds: float, failure: str) -> None:
        """A round has ended; `failure` is its last failure, or empty."""
        self.history.add(row)
        self.history.seconds.append(seconds)
        self.history.last_failure = failure or self.history.last_failure

    def warn(self, text: str) -> None:
        print(f"warn   {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A message that is no warning, such as: a device has joined."""

    def end(self, lines: Sequence[str]) -> None:
        """Print the last lines; nothing follows them. With --quiet, leave out the advice on what to do next."""
        self.close()
        for line in lines:
            if self.result is not None and not line.startswith("next "):
                print(line, file=self.result, flush=True)

    def close(self) -> None:
        """Restore the terminal. Safe to call twice."""


class LineScreen(Screen):
    """For pipes and files: a header, one line per round, a summary; no colour, no redraw."""

    def __init__(self, stream: Any, *, verbose: bool = False) -> None:
        super().__init__(verbose=verbose)
        self.stream = stream
        self._phase, self._is_mid_line = "", False

    def phase(self, text: str) -> None:
        # One line for all phases: the start is short, but the user should see that something is happening.
        if text != self._phase:
            self._write(f", {text}" if self._is_mid_line else f"starting: {text}", end="")
        self._phase, self._is_mid_line = text, True

    def begin(self, head: Head, rows: Sequence[Row]) -> None:
        super().begin(head, rows)
        self._write(f"{head.line()}   {head.engine}" + (f"   resumed after round {len(rows)}" if rows else ""))

    def round(self, row: Row, seconds: float, failure: str) -> None:
        super().round(row, seconds, failure)
        assert self.head is not None  # `begin` came first
        self._write(console_text.round_line(row, seconds, failure, self.head, verbose=self.verbose))

    def warn(self, text: str) -> None:
        self._write("", end="")
        super().warn(text)

    def note(self, text: str) -> None:
        self._write(f"note   {text}")

    def end(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._write(line)

    def close(self) -> None:
        self._write("", end="")

    def _write(self, text: str, end: str = "\n") -> None:
        if self._is_mid_line and not text.startswith(", "):
            self._is_mid_line = False
            text = "\n" + text
        print(text, end=end, file=self.stream, flush=True)


class Panel(Screen):
    """For terminals: a panel of a dozen lines that is redrawn in place."""

    def __init__(self, console: "Console", *, verbose: bool = False) -> None:
        from rich.live import Live

        super().__init__(verbose=verbose)
        self.console = console
        self._phase, self._began = "", time.monotonic()
        self._doing, self._since = ("", 0, 0), self._began  # phase of the current round, and when it began
        self._lock = threading.RLock()  # rich redraws in its own thread
        settings: Any = {"refresh_per_second": REDRAWS, "vertical_overflow": "visible"}
        self._live = Live(get_renderable=self._render, console=console, **settings)
        self._is_live = False

    def phase(self, text: str) -> None:
        self._phase = text
        if not self._is_live:
            self._live.start()
            self._is_live = True
        self._live.refresh()

    def begin(self, head: Head, rows: Sequence[Row]) -> None:
        with self._lock:
            super().begin(head, rows)
            self._began = time.monotonic()

    def progress(self, phase: str, done: int, total: int) -> None:
        with self._lock:
            if phase != self._doing[0]:
                self._since = time.monotonic()
            self._doing = (phase, done, total)  # drawn when the panel is: REDRAWS times a second

    def round(self, row: Row, seconds: float, failure: str) -> None:
        with self._lock:
            super().round(row, seconds, failure)
            self._began = time.monotonic()

    def warn(self, text: str) -> None:
        self._print("warn", f"   {text}", "yellow")

    def note(self, text: str) -> None:
        self._print("note", f"   {text}", "bold")

    def end(self, lines: Sequence[str]) -> None:
        self.close()
        for line in lines:
            word, gap, rest = line.partition(" ")
            self._print(word, gap + rest, "bold")

    def close(self) -> None:
        if self._is_live:
            self._is_live = False
            self._live.transient = self.head is None  # phases disappear when they are over, even after an error
            self._live.stop()

    def _print(self, word: str, rest: str, style: str) -> None:
        from rich.text import Text

        self.console.print(Text.assemble((word, style), rest), soft_wrap=True)

    def _render(self) -> "Text":
        from rich.text import Text

        if self.head is None:
            begins = f"fedkd {fedkd.__version__}  {self._phase} ...  {time.monotonic() - self._began:.0f} s"
            return Text(begins, no_wrap=True, overflow="ellipsis")
        with self._lock:
            now = time.monotonic()
            doing = console_text.doing(*self._doing, now - self._since)
            lines = console_text.panel(self.head, self.history, now - self._began, doing, verbose=self.verbose)
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        text.highlight_regex(r"(?m)^ [a-z]+", "cyan")
        text.highlight_regex(r"(failed|late|rejected) [1-9]\d*", "yellow")
        text.highlight_regex(r"━+╸?", "green")
        return text


def make(options: Any) -> Screen:
    """The screen for these options; with --json it is on stderr, so that stdout holds one object."""
    verbose = bool(options.verbose)
    if options.quiet:
        return Screen(None if options.json else sys.stdout, verbose=verbose)
    stream = sys.stderr if options.json else sys.stdout
    console = terminal(stream, options)
    return LineScreen(stream, verbose=verbose) if console is None else Panel(console, verbose=verbose)


def terminal(stream: Any, options: Any) -> "Console | None":
    """The terminal behind a stream, if redrawing it is possible and allowed."""
    if not stream.isatty() or options.debug:  # a debugger needs a terminal without redraws
        return None
    from rich.console import Console

    console = Console(file=stream)
    can_redraw = console.is_terminal and not console.is_dumb_terminal and "utf" in console.encoding.lower()
    return console if can_redraw else None
