"""Problem: the facts of the task that both halves of an algorithm know before the first round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedkd import starting, student
from fedkd.config import TrainConfig
from fedkd.data.samples import Proxy, blank
from fedkd.payload import Weights
from fedkd.seeds import Stream, stream
from fedkd.student import Student


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The task: how many clients and classes, how students are made and trained.

    Clients may have students of different architectures; `make` then makes the server's own student.
    """

    seed: int
    rounds: int  # a strategy that reads it names why in `set_by_last_round`
    clients: int
    classes: int
    input_shape: tuple[int, ...]  # of one sample; of an image: channels, height, width
    vocabulary: int = 0  # samples are token ids from 0 up to it; 0: they are floats
    make: Callable[[], Student]  # must be picklable: workers get it
    statistics: str  # of BatchNorm: `average` (travel with the weights), `local` (stay with each client)
    train: TrainConfig
    mixture: Mapping[str, Callable[[], Student]] = field(default_factory=dict)  # by architecture; empty: one for all
    assigned: tuple[str, ...] = ()  # each client's architecture, in a mixture
    common_init: bool = True  # whether clients of one architecture start from the same weights
    proxy: Proxy | None = None
    given: Weights = field(default_factory=dict)  # entries of a file that all students start from, by the file's names

    def student(self, stream: Stream) -> Student:
        """A student whose initial weights come from `stream`, and from the file if there is one."""
        built = student.build(self.make, stream)
        if self.given:
            starting.load(built, self.given)
        return built

    def initial(self, client: int | None = None) -> Student:
        """The initial student of a client, or of the server (None)."""
        streams = stream(self.seed, "init")
        if client is None or self.common_init:
            return self.of(client).student(streams)
        return self.of(client).student(stream(self.seed, "init", client=client))

    @property
    def is_mixed(self) -> bool:
        """Whether clients differ in architecture."""
        return len(set(self.assigned)) > 1

    @property
    def architectures(self) -> list[str]:
        """The clients' architectures, ascending; only the empty name if all are alike."""
        return sorted(set(self.assigned)) or [""]

    def architecture(self, client: int | None) -> str:
        """The name of a client's architecture; empty if all are alike, and for the server's own (None)."""
        return self.assigned[client] if client is not None and self.assigned else ""

    def of(self, client: int | None) -> "Problem":
        """The same problem with this client's architecture for all: its `latent`, `shared`, `statistic_names`."""
        return self.alike(self.architecture(client))

    def alike(self, architecture: str) -> "Problem":
        """The same problem with students of one architecture; empty: the server's own."""
        if architecture not in self._alike:
            make = self.mixture[architecture] if architecture else self.make
            self._alike[architecture] = replace(self, make=make, mixture={}, assigned=())
        return self._alike[architecture]

    @cached_property
    def _alike(self) -> dict[str, "Problem"]:
        return {} if self.assigned else {"": self}

    @cached_property
    def shape(self) -> Student:
        """A student without entries, on the meta device: names and widths only."""
        with torch.device("meta"):
            return self.make()

    def blank(self, size: int) -> Tensor:
        """Samples (size, ...) of zeros, to try a student on."""
        return blank(size, self.input_shape, self.vocabulary)

    @property
    def latent(self) -> int:
        """d, the width of the latent z: the head's input."""
        return self.shape.latent_width

    @cached_property
    def entry_names(self) -> frozenset[str]:
        """Names of all entries of a student's weights."""
        return frozenset(self.shape.learnable | self.shape.statistics)

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """Names of the BatchNorm statistics; empty under GroupNorm."""
        return tuple(self.shape.statistics)

    def shared(self, weights: Weights, share: str = "all") -> Weights:
        """The entries that travel: `share` is `all` or `head`; BatchNorm statistics only under the policy `average`."""
        stays = set(self.statistic_names) if self.statistics == "local" else set()
        return {
            name: value
            for name, value in weights.items()
            if name not in stays and (share == "all" or name.startswith("head."))
        }
