"""What a part is: a term beside those of a client half, and what it needs a frozen teacher for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.engine import Job
from fedkd.participation import Batch
from fedkd.problem import Problem
from fedkd.student import Student

PREFIX = "part:"  # of all that parts put beside what a client half draws and knows


@dataclass(frozen=True)
class Seen:
    """One step as a part sees it."""

    student: Student
    batch: Batch
    job: Job
    outputs: Mapping[str, Tensor]  # of the student's blocks on the batch; `head` gives the logits
    per_sample: Mapping[str, Tensor]  # rows of this batch: what `logits_of`, `tap_of` and Part.prepare name
    ask: Callable[[Tensor], Tensor | None]  # logits that the part's frozen teacher gives other images

    @property
    def logits(self) -> Tensor:
        return self.outputs["head"]


class Part:
    """A named term. An instance holds its frozen configuration and nothing else; `terms` draw and change nothing."""

    name: ClassVar[str]

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    @property
    def is_on(self) -> bool:
        """Whether it does anything at all; a part that is off costs nothing and moves no random stream."""
        return bool(self.config.weight)

    @property
    def teacher(self) -> str | None:
        """The frozen teacher it needs: `broadcast`, `own`, `ema`, or None."""
        found: str | None = getattr(self.config, "teacher", None)
        return found

    @property
    def needs_weights(self) -> bool:
        """Whether it means nothing under a strategy that sends no weights."""
        return self.teacher == "broadcast"

    def check(self, problem: Problem) -> None:
        """Raises ConfigError if the students of `problem`, which are all alike, do not fit."""

    def taps(self, problem: Problem) -> tuple[str, ...]:
        """Blocks of the teacher whose outputs it compares."""
        return ()

    def prepare(self, teacher: Student, logits_SC: Tensor, y_S: Tensor) -> Mapping[str, Tensor]:
        """What it makes of the teacher's answers to all samples at once: tensors of first axis S, by full name."""
        return {}

    def draw(self, size: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """Random tensors for one step, from a stream of the part's own: other draws stay as they are."""
        return {}

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        """Named summands, weighted; none where its teacher is not there yet."""
        raise NotImplementedError


def logits_of(source: str) -> str:
    """The name of a frozen teacher's logits in `Seen.per_sample`."""
    return f"{PREFIX}{source}:logits"


def tap_of(source: str, block: str) -> str:
    """The name of a block's output of a frozen teacher in `Seen.per_sample`."""
    return f"{PREFIX}{source}:tap:{block}"


def shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Shape of what each block of a student gives for one image, from shallow to deep."""
    student, names = problem.shape.eval(), [name for name, _ in problem.shape.named_children()]
    with torch.no_grad():
        _, found = student.taps(torch.empty(1, *problem.input_shape, device="meta"), names)
    return {name: tuple(value.shape[1:]) for name, value in found.items()}


@dataclass
class Watch:
    """Notes what a student's blocks give for one batch, whoever runs it: no second forward, BatchNorm moves once.

    Only a run with gradient counts, and the first one; each block must be given what the one before it gave.
    """

    student: Student
    x: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def __enter__(self) -> "Watch":
        self._next = self.x
        self._handles = [block.register_forward_hook(self._note(name)) for name, block in self.student.named_children()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def complete(self) -> Mapping[str, Tensor]:
        """The outputs of all blocks; the student is run if nobody did."""
        if "head" not in self.outputs:
            _, self.outputs = self.student.taps(self.x, [name for name, _ in self.student.named_children()])
        return self.outputs

    def _note(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs[0] is self._next and name not in self.outputs and torch.is_grad_enabled():
                self.outputs[name] = self._next = output

        return note


@torch.no_grad()
def answers(source: str, teacher: Student, x: Tensor, taps: Iterable[str], rows: int) -> dict[str, Tensor]:
    """What a frozen teacher says of images, `rows` at a time: its logits, and the outputs of some blocks."""
    taps = tuple(taps)
    parts = [teacher.taps(part, taps) for part in x.split(rows)]
    found = {tap_of(source, name): torch.cat([tapped[name] for _, tapped in parts]) for name in taps}
    return {logits_of(source): torch.cat([logits for logits, _ in parts]), **found}
