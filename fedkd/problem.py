"""Problem: what both halves of an algorithm are told about the task before the first round."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from fedkd import student
from fedkd.config import TrainConfig
from fedkd.payload import Weights
from fedkd.seeds import Stream, stream
from fedkd.student import Student


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The task: how many clients and classes, how students are made and trained."""

    seed: int
    rounds: int
    clients: int
    classes: int
    input_shape: tuple[int, int, int]  # channels, height, width
    make: Callable[[], Student]  # must be picklable: workers get it
    statistics: str  # of BatchNorm: `average` (travel with the weights), `local` (stay with each client)
    train: TrainConfig

    def student(self, stream: Stream) -> Student:
        """A student whose initial weights come from `stream`."""
        return student.build(self.make, stream)

    def initial(self) -> Student:
        """The student every client and server of this run starts from."""
        return self.student(stream(self.seed, "init"))

    @cached_property
    def _shape(self) -> Student:
        """A student without entries: names and widths only."""
        with torch.device("meta"):
            return self.make()

    @property
    def latent(self) -> int:
        """d, the width of the latent z: the head's input. 0 if the head is not a linear layer."""
        return int(getattr(self._shape[-1], "in_features", 0))

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """Names of the BatchNorm statistics; empty under GroupNorm."""
        return tuple(self._shape.statistics)

    def shared(self, weights: Weights, share: str = "all") -> Weights:
        """The entries that travel: `share` is `all` or `head`; BatchNorm statistics only under the policy `average`."""
        stays = set(self.statistic_names) if self.statistics == "local" else set()
        return {
            name: value
            for name, value in weights.items()
            if name not in stays and (share == "all" or name.startswith("head."))
        }
