"""The two streams that a command prints to. A failing stream never ends a run.

Characters that an encoding lacks are replaced. A stream that is lost, as in `fedkd run | head`, swallows the rest.
"""

import errno
import io
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any, cast

_NOBODY_READS = {errno.EPIPE, errno.EIO}  # the reader has ended, the terminal has hung up: no warning needed


class _Lasting(io.FileIO):
    """A file descriptor on which writing never fails, even without a reader."""

    def write(self, data: Any, /) -> int:
        try:
            while (written := cast("int | None", super().write(data))) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return written
        except OSError as error:
            self._lose(error)
            return memoryview(data).nbytes

    def _lose(self, error: OSError) -> None:
        """Discard all further output, also of children and libraries that write to the same descriptor."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if error.errno not in _NOBODY_READS and self.fileno() != 2:
            with suppress(OSError):
                os.write(2, f"warn   nothing more can be printed: {error.strerror}\n".encode())


def keep() -> None:
    """Make printing to the standard streams never fail."""
    for number in (0, 1, 2):  # otherwise the run's next file would take the number of a closed one
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = lasting(1, sys.stdout), lasting(2, sys.stderr)


def outlive_terminal() -> None:
    """Continue when the terminal hangs up; children inherit this."""
    with suppress(AttributeError, ValueError):  # no SIGHUP on this system; not the main thread
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def lasting(number: int, before: Any) -> io.TextIOWrapper:
    """A text stream on which printing never fails; `before` is Python's own stream for the descriptor."""
    raw = _Lasting(number, "w", closefd=False)
    errors = getattr(before, "errors", "strict")
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="replace" if errors in ("strict", "surrogateescape") else errors,
        line_buffering=number == 2 or raw.isatty() or getattr(before, "write_through", False),
    )
