"""The base of all parts: a term beside those of a client half, often with a frozen teacher."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedkd.engine import Job
from fedkd.participation import Batch
from fedkd.problem import Problem
from fedkd.student import Student

PREFIX = "part:"  # of all names that parts add to `drawn` and `per_sample`


@dataclass(frozen=True)
class Seen:
    """A part's view of one step."""

    student: Student
    batch: Batch
    job: Job
    outputs: Mapping[str, Tensor]  # of the student's blocks on the batch; `head` gives the logits
    per_sample: Mapping[str, Tensor]  # rows of this batch: what `logits_of`, `tap_of` and Part.prepare name
    ask: Callable[[Tensor], Tensor | None]  # the frozen teacher's logits on other images

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
        """Whether it has any effect; a part that is off costs nothing and draws nothing."""
        return bool(self.config.weight)

    @property
    def teacher(self) -> str | None:
        """The frozen teacher that it needs: `broadcast`, `own`, `ema`, or None."""
        found: str | None = getattr(self.config, "teacher", None)
        return found

    @property
    def needs_weights(self) -> bool:
        """Whether it needs a strategy that sends weights."""
        return self.teacher == "broadcast"

    def check(self, problem: Problem) -> None:
        """Raises ConfigError if the students of `problem`, all of one architecture, do not fit."""

    def taps(self, problem: Problem) -> tuple[str, ...]:
        """The teacher's blocks whose outputs it compares."""
        return ()

    def prepare(self, teacher: Student, logits_SC: Tensor, y_S: Tensor) -> Mapping[str, Tensor]:
        """What it computes from the teacher's logits on all samples at once: tensors of first axis S, by full name."""
        return {}

    def draw(self, size: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """Random tensors for one step, from the part's own stream, so that other draws do not change."""
        return {}

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        """Named summands, weighted; none if there is no teacher yet."""
        raise NotImplementedError


def logits_of(source: str) -> str:
    """The name of the frozen teacher's logits in `Seen.per_sample`."""
    return f"{PREFIX}{source}:logits"


def tap_of(source: str, block: str) -> str:
    """The name of a frozen teacher's block output in `Seen.per_sample`."""
    return f"{PREFIX}{source}:tap:{block}"


def shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Shape of each block's output for one image, from shallow to deep."""
    with torch.no_grad():
        _, outputs = problem.initial().eval().taps(problem.blank(1))
    return {name: tuple(value.shape[1:]) for name, value in outputs.items()}


@contextmanager
def recording(student: Student, x: Tensor) -> Iterator[dict[str, Tensor]]:
    """Records the outputs of a student's blocks on one batch, in the first run with gradient: no second forward."""
    outputs: dict[str, Tensor] = {}
    handles = student.watch(x, outputs)
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def complete(outputs: dict[str, Tensor], student: Student, x: Tensor) -> dict[str, Tensor]:
    """The recorded outputs of all blocks; runs the student if no recorded run did."""
    return outputs if "head" in outputs else student.taps(x)[1]


@torch.no_grad()
def answers(source: str, teacher: Student, x: Tensor, taps: Iterable[str], rows: int) -> dict[str, Tensor]:
    """A frozen teacher's logits and outputs of some blocks on images, `rows` at a time."""
    taps = tuple(taps)
    parts = [teacher.taps(part, taps) for part in x.split(rows)]
    tapped_outputs = {tap_of(source, name): torch.cat([tapped[name] for _, tapped in parts]) for name in taps}
    return {logits_of(source): torch.cat([logits for logits, _ in parts]), **tapped_outputs}
