"""Untrusted text: which characters a configuration may hold, and how text is shown.

Control characters steer terminals and break renderers, direction marks disguise a line, and half a surrogate pair
cannot be written as UTF-8.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 4096  # characters of a value in a configuration: a path's
LONGEST_NAME = 200  # of a name in a picture
_CSV_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, most: int | None = None, keep: str = "") -> str:
    """Safe text for display: at most `most` characters; unprintable ones that are not in `keep` become their codes."""
    cut = text[:most]
    if cut.isprintable():
        return cut
    shown = (c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in cut)
    return "".join(shown)[:most]


def shown(value: Any) -> Any:
    """`printable` for all text in nested dictionaries and lists; long text ends with an ellipsis."""
    if isinstance(value, str):
        text = printable(value, LONGEST_NAME + 1)
        return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
    if isinstance(value, Mapping):
        return {shown(key): shown(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [shown(part) for part in value]
    return value


def problem(text: str) -> str:
    """How to mend a text that no configuration may hold; empty if the text is allowed."""
    if len(text) > LONGEST:
        return f"must have at most {LONGEST} characters, not {len(text)}"
    if unsafe := _STEERING.search(text):
        return f"must not have the character U+{ord(unsafe[0]):04X}, which cannot be shown"
    return ""


def texts(value: Any) -> Iterator[str]:
    """All text in nested dictionaries and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.items() for part in item for text in texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in texts(part))


def cell(value: Any) -> Any:
    """A value of a CSV file. Text that a spreadsheet would take for a formula gets an apostrophe, as OWASP advises."""
    if not isinstance(value, str):
        return value
    text = printable(value, LONGEST)
    return f"'{text}" if value.startswith(_CSV_FORMULA) and not _is_number(value) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
