"""Size limits of a message: everything in it counts, before any of it is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, RecordDict

_NUMBER = 8  # bytes of a number, as Flower sends it


class TooLarge(ValueError):
    """A message above a limit, which is not read."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one message. Text costs most: as JSON, 22 times its length in memory."""

    size: int = 1 << 31  # bytes in all; Flower's own limit
    text: int = 1 << 24  # characters of names and text
    entries: int = 100_000  # records, arrays, numbers

    def check(self, content: RecordDict) -> None:
        """Raises TooLarge."""
        _refuse(sum(1 + _entries(record) for record in content.values()), self.entries, "entries")
        sizes = [size for name, record in content.items() for size in ((len(name), 0), *_sizes(record))]
        text, other = (sum(part) for part in zip((0, 0), *sizes, strict=True))
        _refuse(text, self.text, "characters of text")
        _refuse(text + other, self.size, "bytes")


OWN = Limits()  # where both ends are ours


def _entries(record: Any) -> int:
    """The number of names, and of values in lists."""
    return len(record) + sum(len(value) for value in record.values() if isinstance(value, list))


def _sizes(record: Any) -> Iterator[tuple[int, int]]:
    """For names and values: characters of text, and bytes of everything else."""
    for name, value in record.items():
        yield len(name), 0
        if isinstance(value, Array):
            yield len(value.dtype) + len(value.stype), len(value.data) + _NUMBER * len(value.shape)
            continue
        for part in value if isinstance(value, list) else (value,):
            yield (len(part), 0) if isinstance(part, str) else (0, len(part) if isinstance(part, bytes) else _NUMBER)


def _refuse(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise TooLarge(f"the message has {count:,} {what}, at most {limit:,} are read")
