"""Participation: the inputs and results of one client's local update."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fedkd.config import TrainConfig
from fedkd.data.samples import Samples
from fedkd.engine import ClientState, Job
from fedkd.payload import Payload, Weights
from fedkd.problem import Problem
from fedkd.student import Student


@dataclass(frozen=True)
class Batch:
    """One training batch: x (B, channels, height, width) scaled, y (B,) int64, and what `draw` drew for it."""

    x: Tensor
    y: Tensor
    step: int  # counts from 0 within the participation
    size: int  # the configured batch size; the last batch of a pass may be shorter
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    per_sample: Mapping[str, Tensor] = field(default_factory=dict)  # from `precompute`: tensors whose first axis is B


@dataclass(frozen=True)
class Trained:
    """The result of local training, for `report` and `next_memory`."""

    student: Student
    labels_drawn: Tensor  # (C,) int64: how often each label was drawn in this participation
    num_examples: int
    memory: Mapping[str, Any]
    site: "Site"  # gives access to the client's samples, for reports that need them again
    steps: int  # SGD steps done
    lr: float  # learning rate of these steps


Terms = Callable[[Batch], Iterator[tuple[str, Tensor]]]  # of one step: named summands of the loss


@dataclass(frozen=True)
class Outcome:
    """The result of one participation."""

    payload: Payload
    state: ClientState
    numbers: Mapping[str, float]
    student: Student | None = None  # as trained: the site lets it label the probe images
    num_examples: int | None = None  # the size that the client reports; None: the true size (privacy.py)


@dataclass(frozen=True)
class LocalBatches:
    """The training samples of one participation, S in the order of their steps."""

    x: Tensor  # (S, ...) scaled and augmented
    y: Tensor  # (S,) int64
    position: Tensor  # (S,) int64: in the client's training data
    sizes: tuple[int, ...]  # samples per step
    epoch: int  # where the next participation begins
    offset: int


class Site(Protocol):
    """What a client half may use of the site on which it trains: fedkd.training.site.LocalSite.

    `client` is the client half itself, passed so that a wrapper's methods are called too.
    """

    @property
    def problem(self) -> Problem: ...
    @property
    def train(self) -> Samples: ...
    @property
    def test(self) -> Samples: ...
    @property
    def train_index(self) -> Mapping[int, Tensor]: ...
    @property
    def test_index(self) -> Mapping[int, Tensor]: ...
    @property
    def common(self) -> Tensor | None: ...
    def fit(
        self,
        client: Any,
        job: Job,
        student: Student | None = None,
        *,
        learnable: Mapping[str, Tensor] | None = None,
        batches: LocalBatches | None = None,
        terms: Terms | None = None,
    ) -> Outcome: ...
    def draw(self, job: Job, train: TrainConfig | None = None) -> LocalBatches: ...
    def augmented(self, job: Job, index: Tensor) -> tuple[Tensor, Tensor]: ...
    def batches(
        self, client: Any, job: Job, drawn: LocalBatches, per_sample: Mapping[str, Tensor] | None = None
    ) -> Iterator[Batch]: ...
    def optimiser(self, job: Job, learnable: Mapping[str, Tensor], memory: Mapping[str, Any] | None = None) -> Any: ...
    def close(
        self,
        client: Any,
        job: Job,
        student: Student,
        drawn: LocalBatches | None,
        numbers: Mapping[str, float],
        optimiser: Any = None,
    ) -> Outcome: ...
    def trained(self, client: Any, job: Job, student: Student, drawn: LocalBatches | None) -> Trained: ...
    def label_counts(self, client: int) -> Tensor: ...
    def own(self, client: int) -> tuple[Tensor, Tensor]: ...
    def student(self, job: Job) -> Student: ...
    def frozen(self, client: int | None, *layers: Weights, role: str = "frozen") -> Student: ...
    def beside(self, *layers: Weights) -> Student: ...
    def score(self, client: Any, student: Student, job: Job) -> float: ...
