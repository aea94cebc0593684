"""Better hints for mistakes: a key of another method, several values for one key. Free of torch."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from fedkd.configuration import reference
from fedkd.errors import Mistake

Halves = Mapping[str, tuple[str, str]]  # a strategy of conf -> its server half and its client half

_KEY = re.compile(r"unknown key 'strategy\.(\w+)'")
_SEVERAL = re.compile(r'([\w.]+) = "?([\w./-]+(?:,[\w./-]+)+|\d+\.\.\d+)"?')
_SLIP = "did you mean"
_MOST = 4  # strategies in a hint


def better(mistake: Mistake, halves: Callable[[], Halves]) -> Mistake:
    """The mistake, with a better way to mend it if there is one."""
    if several := _SEVERAL.fullmatch(mistake.what):
        key, values = several.groups()
        return replace(mistake, mend=f"one value is asked for; to compare several: fedkd compare {key}={values}")
    key = _KEY.fullmatch(mistake.what)
    if key is None or mistake.mend.startswith(_SLIP):
        return mistake
    owners = [f"strategy={name}" for name in _owners(key[1], halves())]
    if not owners:
        return mistake
    more = f" or {len(owners) - _MOST} others" if len(owners) > _MOST else ""
    return replace(mistake, mend=f"it is a key of {' or '.join(owners[:_MOST])}{more}   {mistake.mend}")


def _owners(key: str, halves: Halves) -> Iterator[str]:
    for name, (server, client) in halves.items():
        keys = [*(reference.of_half("strategies", server) or ()), *(reference.of_half("clients", client) or ())]
        if key in (known.name for known in keys):
            yield name
