"""Hides secrets in a command before a file records it, such as the token that Flower gives its processes."""

import re
from collections.abc import Sequence

HIDDEN = "***"
_SECRET = re.compile(r"(?:.*[-_.])?(?:token|password|passwd|secret|credentials?|api[-_]?key)", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # `name:password` in an address


def command(args: Sequence[str]) -> list[str]:
    """The command with hidden values for options and keys that are named like a secret."""
    shown, is_value = [], False
    for arg in args:
        name, equals, _ = arg.partition("=")
        is_secret = bool(_SECRET.fullmatch(name.lstrip("-")))
        if is_value or (is_secret and equals):
            shown.append(HIDDEN if is_value else f"{name}={HIDDEN}")
        else:
            shown.append(_USER.sub(HIDDEN, arg))
        is_value = is_secret and not equals and arg.startswith("-")
    return shown


def text(words: str) -> str:
    """A text with the users and passwords in its addresses hidden."""
    return _USER.sub(HIDDEN, words)
