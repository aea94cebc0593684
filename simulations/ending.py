"""How a command ends that was not played to its end: words for people, an object for machines, an exit code."""

import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedkd.errors import FedkdError

INTERNAL, INTERRUPTED, TERMINATED = 1, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: saved like Ctrl-C, told apart by its exit code."""


def explain(error: BaseException, *, is_debug: bool) -> int:
    """Say on stderr what went wrong; gives the exit code."""
    if is_debug and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        print(f"stopped  {_by(error)}", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if isinstance(error, FedkdError):
        print(f"error  {error}", file=sys.stderr)
        return error.code
    print(f"error  internal: {type(error).__name__}: {error}", file=sys.stderr)
    again = "please report it with" if is_debug else "run it again with --debug and please report"
    print(f"       this is a bug in fedkd: {again} the traceback and the output of 'fedkd doctor'", file=sys.stderr)
    return INTERNAL


def as_json(error: BaseException, code: int) -> Mapping[str, Any]:
    """The same for a machine."""
    if isinstance(error, FedkdError):
        mistakes = [asdict(mistake) for mistake in error.mistakes]
        message = "; ".join(mistake.what for mistake in error.mistakes)
        found = {"message": message, "where": error.where, "mend": error.mend, "topic": error.topic}
        return {**found, "code": code, **({"mistakes": mistakes} if len(mistakes) > 1 else {})}
    if isinstance(error, KeyboardInterrupt):
        return {"message": f"stopped {_by(error)}", "where": "", "mend": "", "topic": "stopped", "code": code}
    message = f"internal: {type(error).__name__}: {error}"
    return {"message": message, "where": "", "mend": "", "topic": "internal", "code": code}


def _by(interrupt: KeyboardInterrupt) -> str:
    return "terminated" if isinstance(interrupt, Terminated) else "by Ctrl-C"
