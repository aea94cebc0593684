"""Matches relations between the positions of a feature map to those in a frozen teacher's map: L_inner of TRG.

Source: Zhang, Liu, He 2023 (docs/parts.md), only the piece without projectors: tokens are the positions of the map
(p = 1), CS = softmax(F F' / sqrt(D)) per image, L_inner = MSE(CS of the teacher, CS of the student).
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from fedkd.errors import ConfigError
from fedkd.parts.layers import pool
from fedkd.parts.part import Part, Seen, shapes, tap_of
from fedkd.problem import Problem


class Graph(Part):
    name = "graph"

    def check(self, problem: Problem) -> None:
        self._tap({name: (1, *shape) for name, shape in shapes(problem).items()})

    def taps(self, problem: Problem) -> tuple[str, ...]:
        return (self._tap({name: (1, *shape) for name, shape in shapes(problem).items()}),)

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        tap = self._tap({name: tuple(value.shape) for name, value in seen.outputs.items()})
        teacher_map = seen.per_sample.get(tap_of(self.config.teacher, tap))
        if teacher_map is not None:
            own = relations(seen.outputs[tap], self.config.side)
            yield self.name, self.config.weight * F.mse_loss(own, relations(teacher_map, self.config.side))

    def _tap(self, shapes: dict[str, tuple[int, ...]]) -> str:
        """The block whose map is compared. Raises ConfigError if no suitable map has more than one position."""
        maps = [name for name, shape in shapes.items() if len(shape) == 4 and shape[2] * shape[3] > 1]
        wanted = self.config.tap
        if wanted is None and not maps:
            raise ConfigError(
                "the student has no feature map with more than one position, so it has no relations between positions",
                where="part.graph",
                mend="choose a convolutional student, or leave the part out",
            )
        if wanted is not None and wanted not in maps:
            shape = " x ".join(map(str, shapes[wanted][2:])) if wanted in shapes else ""
            what = f"block '{wanted}' gives a map of {shape or '1 x 1'}" if wanted in shapes else f"no block '{wanted}'"
            mend = f"choose one of: {', '.join(maps)}" if maps else "no map of this student has more than one position"
            raise ConfigError(what, where="part.graph.tap", mend=mend)
        return wanted or maps[-1]


def relations(maps_BDHW: Tensor, side: int) -> Tensor:
    """CS, (B, N, N): each position's attention to each other; rows sum to 1. Larger maps are pooled to `side`."""
    height, width = maps_BDHW.shape[2:]
    tokens_BND = pool(maps_BDHW, (min(side, height), min(side, width))).flatten(2).mT
    return (tokens_BND @ tokens_BND.mT / tokens_BND.shape[2] ** 0.5).softmax(2)
