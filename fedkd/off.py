"""Off marks the value of a hyper-parameter that switches its method off; a run reports such values at its start.

mu: Annotated[float, Ge(0), Off("FedAvg")] = 0.01
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Off:
    """`left`: the remaining algorithm, printed after `what is left is`. `at`: the value."""

    left: str
    at: float = 0


def notes(config: Any) -> Iterator[str]:
    """A sentence for each hyper-parameter of a Config that is off."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        for mark in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(mark, Off) and value == mark.at:
                yield f"strategy.{field.name} = {value:g} switches the method off: what is left is {mark.left}"
