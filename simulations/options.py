"""What the options of the command line ask of every verb."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
    answers: list[Mapping[str, Any]] = field(default_factory=list, compare=False, repr=False)  # given so far: one

    def answer(self, found: Mapping[str, Any]) -> None:
        """Print the one object that --json asks for, if it does."""
        if self.json:
            self.answers.append(found)
            print(json.dumps(_finite(found), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """The same with null for what is not finite: JSON knows no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(below) for key, below in value.items()}
    return [_finite(below) for below in value] if isinstance(value, list | tuple) else value
