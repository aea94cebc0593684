"""Orders: what a server tells a client in the few numbers of a payload, and what must then come (fedd2s.md 1.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fedkd.border import Refused
from fedkd.engine import Reply
from fedkd.payload import Numbers, Weights
from fedkd.student import Student


@dataclass(frozen=True, kw_only=True)
class Order:
    """How a client takes part in an exchange; a client that is told nothing trains alone."""

    depth: int = 0  # m: blocks that take part
    temperature: float = 1.0  # T
    student: int = 0  # index in STUDENTS: what learns from the federation
    head: int = 0  # index in heads.KINDS
    is_copy: int = 0  # a local head starts as a copy of the blocks that it replaces
    pool: int = 0  # p: taps are averaged to p x p before they are used; 0 = as they are
    adapter: int = 0  # d*: an adapter brings taps to so many values; 0 = none
    is_half: int = 0  # taps are reported in half precision
    noise: float = 0.0  # Gaussian, on taps that are reported, in units of their root mean square
    max_samples: int = 0  # rows a client reports, at most; 0 = all
    per_class: int = 0  # means by class are reported, not samples
    smoothing: float = 0.0  # the teacher is the label, smoothed by this; 0 = what the server sends
    head_up: int = 0  # the local head is reported too
    held_out: int = 0  # a tenth of the training data judges instead of training
    is_still: int = 0  # no training in this exchange
    is_silent: int = 0  # nothing is reported in this exchange

    def numbers(self) -> Numbers | None:
        """What differs from the defaults, for a payload; None if nothing does."""
        given = {f.name: float(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default}
        return given or None

    @property
    def reports(self) -> bool:
        """Whether samples go up at all: not where nothing takes part, nor where labels are the teacher."""
        return bool(self.depth and not self.is_silent and not self.smoothing)

    def held(self, size: int) -> int:
        """How many of a client's `size` training samples judge instead of training."""
        return size // HELD_OUT if self.held_out else 0

    def rows(self, size: int) -> int:
        """How many of its `size` training samples a client reports on."""
        left = size - self.held(size)
        return min(left, self.max_samples) if self.max_samples else left


HELD_OUT = 10  # one training sample of so many
STUDENTS = ("local_head", "through", "global_head")


def read(numbers: Numbers | None) -> Order:
    """The order that `numbers` hold. Raises TypeError for a name that is none of its fields."""
    whole = {f.name for f in fields(Order) if isinstance(f.default, int)}
    given = {name: int(number) if name in whole else number for name, number in (numbers or {}).items()}
    return Order(**given)  # type: ignore[arg-type]


def check_samples(reply: Reply, order: Order, shape: tuple[int, ...], classes: int) -> None:
    """Raises Refused for rows that are not those that were asked for."""
    samples: Mapping[str, Tensor] = reply.payload.samples or {}
    labels = samples.get("labels", torch.empty(0))
    rows, label_type = len(labels), torch.uint8 if classes <= 256 else torch.int64
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "taps": ((rows, *shape), torch.float16 if order.is_half else torch.float32),
        "logits": ((rows, classes), torch.float32),
        "labels": ((rows,), label_type),
    }
    if order.per_class:
        wanted["counts"] = ((rows,), torch.int64)
    if set(samples) != set(wanted):
        raise Refused("names", f"samples has entries {sorted(samples)}, expected {sorted(wanted)}")
    for name, (size, dtype) in wanted.items():
        if (tuple(samples[name].shape), samples[name].dtype) != (size, dtype):
            got = f"shape {tuple(samples[name].shape)} and dtype {samples[name].dtype}"
            raise Refused("shape", f"samples: '{name}' has {got}, expected {size} and {dtype}")
    if not rows or int(labels.max()) >= classes or int(labels.min()) < 0:
        raise Refused("range", f"samples: 'labels' is empty, or outside 0 to {classes - 1}")
    expected, counted = order.rows(reply.num_examples), rows
    if order.per_class:
        counted = int(samples["counts"].sum())
        if int(samples["counts"].min()) < 1 or bool((labels.long().diff() <= 0).any()):
            raise Refused("range", "samples: 'counts' below 1, or 'labels' not in rising order")
    if counted != expected:
        raise Refused("shape", f"samples: of {counted} samples, expected {expected}")


def check_head(entries: Weights, head: Student) -> None:
    """Raises Refused for entries that are not a head's."""
    wanted = head.learnable | head.statistics
    if set(entries) != set(wanted):
        raise Refused("names", f"generator has entries {sorted(entries)}, expected {sorted(wanted)}")
    for name, entry in entries.items():
        if entry.shape != wanted[name].shape or entry.dtype != wanted[name].dtype:
            raise Refused("shape", f"generator: '{name}' has shape {tuple(entry.shape)}")
        if name.endswith("running_var") and bool((entry < 0).any()):
            raise Refused("range", f"generator: '{name}' has negative variances")
