"""The end of a failed command: text for people, an object for machines, an exit code."""

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedkd.errors import FedkdError
from simulations.system import machine

INTERNAL, INTERRUPTED, TERMINATED = 1, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, with another exit code."""


def explain(error: BaseException, args: Sequence[str]) -> int:
    """Print the error of a command on stderr; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print(f"stopped  {_by(error)}", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    error, is_debug = machine.explained(error), "--debug" in args
    if is_debug:
        traceback.print_exception(error)
    if isinstance(error, FedkdError):
        print("\n       ".join(filter(None, (f"error  {error}", _mended(error, args)))), file=sys.stderr)
        return error.code
    print(f"error  internal: {type(error).__name__}: {error}", file=sys.stderr)
    again = "please report it with" if is_debug else "run it again with --debug and please report"
    print(f"       this is a bug in fedkd: {again} the traceback and the output of 'fedkd doctor'", file=sys.stderr)
    return INTERNAL


def as_json(error: BaseException, code: int, args: Sequence[str]) -> Mapping[str, Any]:
    """The error as an object, for --json."""
    error = machine.explained(error)
    if isinstance(error, FedkdError):
        mistakes = [asdict(mistake) for mistake in error.mistakes]
        message = "; ".join(mistake.what for mistake in error.mistakes)
        about = {"message": message, "where": error.where, "mend": error.mend, "topic": error.topic, "code": code}
        return {**about, **({"mistakes": mistakes} if len(mistakes) > 1 else {"command": _mended(error, args)})}
    if isinstance(error, KeyboardInterrupt):
        message, topic = f"stopped {_by(error)}", "stopped"
    else:
        message, topic = f"internal: {type(error).__name__}: {error}", "internal"
    return {"message": message, "where": "", "mend": "", "topic": topic, "code": code}


def _mended(error: FedkdError, args: Sequence[str]) -> str:
    """The command line with the missing overrides; empty if overrides cannot mend the error."""
    added = [mistake.add for mistake in error.mistakes]
    return shlex.join(["fedkd", *args, *added]) if all(added) else ""


def _by(interrupt: KeyboardInterrupt) -> str:
    return "terminated" if isinstance(interrupt, Terminated) else "by Ctrl-C"
