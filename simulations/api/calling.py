"""What every call from Python shares: what is shown, how it ends, and how many threads compute."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from simulations.run import code_copies, run_folder, runs
from simulations.run.options import Options

T = TypeVar("T", bound=Options)


def shown(kind: type[T], quiet: bool | None, **values: Any) -> T:
    """Options of a verb that show progress on a terminal, and else only warnings, on stderr."""
    is_quiet = not sys.stdout.isatty() if quiet is None else quiet
    return kind(quiet=is_quiet, json=is_quiet, is_silent=True, **values)


def ended(totals: Mapping[str, Any]) -> Path:
    """The folder of a summary's run. Raises KeyboardInterrupt if Ctrl-C stopped it, SystemExit after SIGTERM."""
    place = Path(totals["run"])
    if totals["status"] != "stopped":
        return place
    if totals.get("signal") == "SIGTERM":
        raise SystemExit(runs.exit_code(dict(totals)))
    call = code_copies.load_call(place, run_folder.info(place).get("session") or {})
    raise KeyboardInterrupt(f"saved after round {totals['rounds']}; go on: {call}.resume()")


def warn(text: str) -> None:
    print(f"warn   {text}", file=sys.stderr)
