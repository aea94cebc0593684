"""Matches hidden layers to those of a frozen teacher of the same architecture.

Source: Yu, Wen, Mou 2025 (docs/parts.md). L_hid = sum_l MSE(F_S[l], F_T[m(l)]); projectors are the identity,
maps are pooled to the smaller side, and layers of different width are an error.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd import seeds
from fedkd.errors import ConfigError
from fedkd.parts.part import Part, Seen, shapes, tap_of
from fedkd.problem import Problem


class Layers(Part):
    name = "layers"

    def __init__(self, config: object, seed: int = 0) -> None:
        super().__init__(config)
        self.seed = seed  # of the run, so that mapping `random` stays the same

    @property
    def is_on(self) -> bool:
        return bool(self.config.weight) and self.config.mapping != "none"

    def check(self, problem: Problem) -> None:
        sizes = shapes(problem)
        if unknown := [name for name in self.config.taps or () if name not in sizes]:
            mend = f"its blocks are {', '.join(sizes)}"
            raise ConfigError(f"the student has no block {', '.join(unknown)}", where="part.layers.taps", mend=mend)
        for one, other in self._pairs(self.taps(problem)):
            if sizes[one][0] != sizes[other][0]:
                raise ConfigError(
                    f"layers '{one}' {sizes[one]} and '{other}' {sizes[other]} differ in width: there is no projector",
                    where="part.layers",
                    mend="choose taps of one width, or part.layers.mapping=forward",
                )

    def taps(self, problem: Problem) -> tuple[str, ...]:
        return self._taps(list(shapes(problem)))

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        taps, source = self._taps(list(seen.outputs)), self.config.teacher
        if any(tap_of(source, name) not in seen.per_sample for name in taps):
            return
        pairs = self._pairs(taps)
        distances = [distance(seen.outputs[one], seen.per_sample[tap_of(source, other)]) for one, other in pairs]
        yield self.name, self.config.weight * torch.stack(distances).sum()

    def _taps(self, blocks: Sequence[str]) -> tuple[str, ...]:
        wanted = self.config.taps or blocks[-2:-1] or blocks
        return tuple(name for name in blocks if name in wanted)

    def _pairs(self, taps: Sequence[str]) -> list[tuple[str, str]]:
        rng = seeds.stream(self.seed, "part layers").numpy()
        chosen = mapping(self.config.mapping, len(taps), len(taps), rng)
        return [(tap, taps[index]) for tap, index in zip(taps, chosen, strict=True)]


def mapping(kind: str, num_student: int, num_teacher: int, rng: np.random.Generator) -> list[int]:
    """For each of the student's S layers, the index of one of the teacher's T layers; both count from 0.

    forward: round((l + 1) * T / S) - 1. reverse: the same from the other end. all_to_one: the last. random: a
    permutation, repeated if the student has more. none: an empty list.
    """
    if kind == "none":
        return []
    if kind == "all_to_one":
        return [num_teacher - 1] * num_student
    if kind == "random":
        order = rng.permutation(num_teacher).tolist()
        return [int(order[layer % num_teacher]) for layer in range(num_student)]
    ratio = [(layer + 1) * num_teacher / num_student for layer in range(num_student)]
    forward = [min(num_teacher, max(1, int(r + 0.5))) - 1 for r in ratio]
    return forward if kind == "forward" else forward[::-1]


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two outputs: maps are pooled to the smaller side, or to vectors if one is a vector."""
    if student.dim() == teacher.dim() == 4:
        side = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        return F.mse_loss(pool(student, side), pool(teacher, side))
    return F.mse_loss(_vector(student), _vector(teacher))


def _vector(value: Tensor) -> Tensor:
    return pool(value, (1, 1)).flatten(1) if value.dim() == 4 else value


def pool(maps: Tensor, side: tuple[int, int]) -> Tensor:
    """The maps, mean-pooled to `side`; the same tensor if they already have that size."""
    return maps if tuple(maps.shape[2:]) == side else F.adaptive_avg_pool2d(maps, side)
