"""Payload: all that crosses between the server and one client in one direction.

It has at most one of each *kind of knowledge*. A new kind needs a field here, a check in `border/checks.py` and a line
in docs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from torch import Tensor

Weights = Mapping[str, Tensor]  # named tensors; learnable entries and, where they travel, buffers
Numbers = Mapping[str, float]  # named scalars for the ledger
Findings = Mapping[str, Any]  # Numbers, and nested lists of numbers, such as a trust matrix

NUMBER_BYTES = 8  # a number travels as a double or a 64-bit integer


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Knowledge by kind; absent kinds are None. C classes, d latent width, N probe samples.

    Payloads are compared by identity: equal knowledge for many clients is one object, sent once per worker.
    """

    weights: Weights | None = None  # entries of a student
    reference: Weights | None = None  # entries named like a student's: a second one, or control variates
    generator: Weights | None = None  # entries of a generator
    class_logits: Tensor | None = None  # (C, C) float: mean logits by true label
    prototypes: Tensor | None = None  # (C, d) float: mean latent by true label
    label_counts: Tensor | None = None  # (C,) int64
    probe_logits: Tensor | None = None  # (N, C) float: logits on an agreed probe set
    samples: Weights | None = None  # named tensors that share their first axis: samples, or members of an ensemble
    numbers: Numbers | None = None  # facts of this exchange: scalars that one half tells the other

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def kinds(self) -> frozenset[str]:
        """The kinds of knowledge that are present."""
        return frozenset(kind for kind in KINDS if getattr(self, kind) is not None)

    def number(self, name: str) -> float:
        """One of `numbers`; 0 if it was not sent."""
        return (self.numbers or {}).get(name, 0.0)

    def num_bytes(self) -> Mapping[str, int]:
        """Bytes on the wire by kind: elements times their size; Flower's encoding adds about 1.6 kB per message."""
        present = ((kind, getattr(self, kind)) for kind in KINDS)
        return MappingProxyType({kind: _num_bytes(value) for kind, value in present if value is not None})


KINDS = tuple(field.name for field in fields(Payload))


def _num_bytes(value: Weights | Numbers | Tensor) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_num_bytes(item) if isinstance(item, Tensor) else NUMBER_BYTES for item in value.values())
