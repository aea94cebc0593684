"""Client: the client half of an algorithm, as code. A job names the client that it acts for; memory is ClientState."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedkd import off, renamed
from fedkd.engine import Job
from fedkd.models.predictors import Predictor, SingleModel
from fedkd.participation import Batch, Outcome, Site, Trained
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.student import Student, copied


class Client:
    """A loss of named terms, and a report after training. The train loop, device and bytes are not its concern."""

    sends: ClassVar[frozenset[str]] = frozenset({"weights"})
    # Kinds in `sends` whose rows are not by label here, although other halves' are: label noise remains possible.
    not_by_label: ClassVar[frozenset[str]] = frozenset()
    # Whether `predictor` depends on the client (`job.client`, `job.state`). If not, clients that share one student are
    # evaluated in one pass. A class that overrides `predictor` depends on it by default.
    personal_predictor: bool = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Hyper-parameters of the client half."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        renamed.refuse_old_names(cls)
        if "predictor" in vars(cls) and "personal_predictor" not in vars(cls):
            cls.personal_predictor = True

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def notes(self, problem: Problem) -> Iterator[str]:
        """Sentences on settings that reduce this to another algorithm; by default one for each value marked `Off`."""
        return off.notes(self.config)

    def init(self, problem: Problem, stream: Stream) -> Mapping[str, Any]:
        """The algorithm's memory before a client's first participation."""
        return {}

    def draw(self, job: Job, y: Tensor, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Random tensors that the terms of one step need, from the client's own stream."""
        return {}

    def precompute(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        """What frozen models or tables say about all samples of a participation, in the order in which they are drawn.

        x (S, channels, height, width), y (S,), `position` (S,) in the client's training data. Returns tensors of first
        axis S; each step finds its rows in `batch.per_sample`. One call per participation is cheaper than one per step.
        """
        return {}

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        """Named summands of the loss, weighted. They draw and change nothing; a term of weight 0 is not yielded."""
        raise NotImplementedError

    def next_memory(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        """The algorithm's memory after a participation."""
        return trained.memory

    def report(self, trained: Trained, job: Job) -> Payload:
        """The payload for the server. By default the received entries, as trained."""
        received = job.payload.weights
        if received is None:
            return Payload()
        entries = trained.student.entries
        return Payload(weights=copied({name: entries[name] for name in received}))

    def predictor(self, job: Job) -> Predictor:
        """How an evaluation job, and an export, turn a student into predictions."""
        return SingleModel()

    def train(self, site: Site, job: Job) -> Outcome:
        """One participation; algorithms with several exchanges or phases override it."""
        return site.fit(self, job)
