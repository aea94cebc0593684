"""Runs Python in a separate process, for measurements and trials."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

from fedkd.errors import EngineError

_TRACEBACK = "Traceback (most recent call last):\n"
_ROOT = Path(__file__).parents[2]  # the folder of our packages, in a checkout and in an installed wheel


def python(*args: str, timeout: float) -> str:
    """Run this Python with `args` and our packages on its path; returns its standard output.

    Raises EngineError with the exception that ended the process and its causes. After `timeout` seconds it kills the
    process with all its children, and raises EngineError too.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, *args],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own: killed as a whole
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException as error:  # out of time, or Ctrl-C here
        _kill(child)
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EngineError(f"no answer within {timeout:g} s") from error
        raise
    if child.returncode:
        what, mend = last_words(err)
        raise EngineError(what or f"ended with code {child.returncode}", mend=mend)
    return out


def _kill(child: "subprocess.Popen[str]") -> None:
    """Kill a process with all its children (on Windows without). It is not reaped yet, so the id is its own."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def last_words(err: str) -> tuple[str, str]:
    """The last exception in a failed process's output, with its causes, and the advice on the lines below it."""
    blocks = [_exception(block) for block in err.split(_TRACEBACK)[1:]]
    if not blocks:
        return (err.strip().splitlines() or [""])[-1], ""
    *causes, (what, mend) = blocks
    hidden = [cause for cause, _ in causes if cause.partition(": ")[2] not in what]
    return what + "".join(f" (from {cause})" for cause in reversed(hidden)), mend


def _exception(block: str) -> tuple[str, str]:
    """The exception at the end of a traceback, without its module, and the indented lines below it."""
    lines = list(itertools.dropwhile(lambda line: not line or line[0].isspace(), block.splitlines()))
    more = itertools.takewhile(lambda line: line[:1].isspace(), lines[1:])
    head, colon, rest = (lines or [""])[0].partition(": ")
    return head.rpartition(".")[2] + colon + rest, " ".join(line.strip() for line in more)
