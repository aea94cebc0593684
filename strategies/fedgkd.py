"""FedGKD, server half: averages weights, and also sends the mean of the last global students as a teacher.

Source: Yao et al., arXiv 2107.00051; docs/strategies/fedgkd.md, equation 1. Client half: fedgkd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from fedkd.engine import ClientId, Reply
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """Global entries, and the learnable entries of earlier global students, oldest first: (at most M - 1, ...)."""

    weights: Weights
    past: Weights


class FedGKD(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights", "reference"})
    knowledge = "weights, mean of past ones"
    paper = "Yao et al., arXiv 2107.00051"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        buffer: Annotated[int, Ge(1)] = 5  # paper: M. Global students whose mean teaches; 1: the received one teaches
        weighting: Literal["examples", "uniform"] = "examples"  # by size of the client's data, or equal

    def init(self, problem: Problem, stream: Stream) -> State:
        student = problem.initial()
        entries = problem.shared(student.weights)
        return State(entries, {name: entries[name][None][:0] for name in student.learnable})

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        """The server sends the teacher if it differs from the weights. A teacher has no past BatchNorm statistics."""
        payload = Payload(weights=state.weights, reference=teacher(state))
        return dict.fromkeys(cohort, payload)

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        weights = fusion.fuse_weights(replies, trust_1K1)
        seen = students(state)
        past = {name: value[max(0, len(value) + 1 - self.config.buffer) :] for name, value in seen.items()}
        return State(weights, past), fusion.describe(trust_1K1)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return Payload(weights=state.weights)


def students(state: State) -> Weights:
    """The buffered global students, the present one last: (at most M, ...)."""
    return {name: torch.cat([past, state.weights[name][None]]) for name, past in state.past.items()}


def teacher(state: State) -> Weights | None:
    """Mean of the buffered students, entry by entry; None if there is only one, which clients already receive."""
    if not len(next(iter(state.past.values()))):
        return None
    return {name: value.double().mean(0).to(value.dtype) for name, value in students(state).items()}
