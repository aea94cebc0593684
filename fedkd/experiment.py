"""Experiment: all that is fixed before the first round. RunState: all that changes from round to round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedkd.config import RunConfig
from fedkd.engine import ClientId, ClientState
from fedkd.problem import Problem
from fedkd.standing import Standing
from fedkd.strategy import Strategy


@dataclass(frozen=True)
class Experiment:
    """The fixed parts of a run: configuration, problem and the server half."""

    config: RunConfig
    problem: Problem
    strategy: Strategy[Any]
    num_pooled: int  # samples of the pooled test set; 0: there is none
    pooled_labels: Tensor | None = None  # (N,) int64: of the pooled test set, for `evaluate.metrics`
    probe_labels: Tensor | None = None  # (N,) int64: true labels of the probe images
    label_distributions: Tensor | None = None  # (K, C): of each client's training data; for measures only
    num_tests: Sequence[int] | None = None  # test samples of each client; None: unknown, only devices know them
    personal_predictor: bool = True  # of the client half
    sizes: tuple[int, ...] | None = None  # training samples of each client; None: unknown, only devices know them


@dataclass(frozen=True)
class RunState:
    """The whole state of a run between two rounds."""

    round: int  # rounds done
    server: Any
    clients: Mapping[ClientId, ClientState]  # of those that have trained
    standing: Standing = field(default_factory=Standing)  # refusals, and clients excluded for them
