"""Hides secrets in a command before a file records it, such as the token that Flower gives its processes."""

import re
from collections.abc import Iterator, Sequence

HIDDEN = "***"
_SECRET = re.compile(r"(?:.*[-_.])?(?:token|password|passwd|secret|credentials?|api[-_]?key)", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # `name:password` in an address


def command(words: Sequence[str]) -> list[str]:
    """The command with hidden values for options and keys that are named like a secret."""
    return list(_words(words))


def _words(words: Sequence[str]) -> Iterator[str]:
    is_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = bool(_SECRET.fullmatch(name.lstrip("-")))
        if is_value or (is_secret and equals):
            yield HIDDEN if is_value else f"{name}={HIDDEN}"
        else:
            yield _USER.sub(HIDDEN, word)
        is_value = is_secret and not equals and word.startswith("-")
