"""What the options of the command line ask of every verb."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of all verbs."""

    runs: Path = Path("runs")  # where run folders are made and looked for
    name: str | None = None  # of the new folder below `runs`
    out: Path | None = None  # this very folder
    json: bool = False  # one JSON object on stdout at the end, progress on stderr
    quiet: bool = False  # nothing but the result and errors
    verbose: bool = False
    debug: bool = False  # one process, full tracebacks
