"""Values that are lists: `a,b,c`, ranges of whole numbers `1..8`, and mixtures of both. Free of torch."""

import re
from collections.abc import Iterator

from fedkd import strict_yaml
from fedkd.errors import ConfigError

LONGEST = 1000  # values of one list

_RANGE = re.compile(r"([+-]?\d{1,18})\.\.([+-]?\d{1,18})")
_OPENING, _CLOSING = "[{(", "]})"


def expand(key: str, text: str, where: str) -> tuple[str, ...]:
    """The values of `key=text`, as texts; a text that is no list is returned unchanged. Raises ConfigError."""
    parts = split(text)
    values = [value for part in parts for value in _of_part(key, part, where)]
    if len(values) == 1:
        return (text,) if _RANGE.fullmatch(text.strip()) is None else tuple(values)
    if not all(values):
        raise ConfigError(f"{key} = {text} has an empty value", where=where, mend="write a value between all commas")
    if len(values) > LONGEST:
        raise ConfigError(f"{key} has {len(values)} values, at most {LONGEST} are allowed", where=where)
    known: set[str] = set()
    for value in values:
        meaning = repr(strict_yaml.scalar(value, where))  # the same for `0.1` and `0.10`
        if meaning in known:
            raise ConfigError(f"{key} = {text} has {value} twice", where=where, mend="write each value once")
        known.add(meaning)
    return tuple(values)


def split(text: str) -> list[str]:
    """Split at commas outside brackets, braces and quotes."""
    parts, start = [], 0
    for comma in _outer_commas(text):
        parts.append(text[start:comma].strip())
        start = comma + 1
    return [*parts, text[start:].strip()]


def _outer_commas(text: str) -> Iterator[int]:
    depth, quote, before = 0, "", ""  # before: the last letter except spaces
    letters = iter(enumerate(text))
    for position, letter in letters:
        if quote:
            if quote == '"' and letter == "\\":
                next(letters, None)
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (not before or before in ",:" + _OPENING):  # inside a word it is an apostrophe
            quote = letter
        elif letter == "," and not depth:
            yield position
        else:
            depth = max(0, depth + (letter in _OPENING) - (letter in _CLOSING))
        before = letter if letter.strip() else before


def _of_part(key: str, part: str, where: str) -> Iterator[str]:
    match = _RANGE.fullmatch(part)
    if not match:
        yield part
        return
    first, last = map(int, match.groups())
    if last < first:
        raise ConfigError(f"{key} = {part} runs backwards", where=where, mend=f"write {last}..{first}")
    if last - first >= LONGEST:
        raise ConfigError(f"{key} = {part} has {last - first + 1} values, at most {LONGEST} are allowed", where=where)
    yield from map(str, range(first, last + 1))
