"""Ctrl-C and SIGTERM: the first one stops in order, the second one kills."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop(KeyboardInterrupt):
    """Raised in the main thread at any point: a long round need not finish first."""


class Interrupts:
    """While this context is open, the first signal raises Stop; inside `deferred` it waits for the end of the block."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._is_deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that must not be interrupted: the rows of a round and their commit."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.caught:
            raise Stop

    def hold(self) -> None:
        """Ignore the first signal from here on: the remaining work is short and completes the run."""
        self._is_deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number)
        for later in (signal.SIGINT, signal.SIGTERM):
            signal.signal(later, signal.SIG_DFL)
        if not self._is_deferred:
            raise Stop
