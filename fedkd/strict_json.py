"""Untrusted JSON: every defect is a ValueError."""

import json
from pathlib import Path
from typing import Any


def parse(text: str | bytes) -> Any:
    """The value. Raises ValueError, also for nesting deeper than Python's stack."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def mapping(text: str | bytes) -> dict[str, Any]:
    """`parse` for text that must hold an object."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, expected an object")
    return value


def read(path: Path, most: int) -> dict[str, Any]:
    """The object in a file of at most `most` bytes. Raises OSError and ValueError."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most} bytes")
    return mapping(data)
