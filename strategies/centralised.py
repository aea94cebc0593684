"""Centralised, server half: no federation. One student trains on all data, which client 0 holds.

An upper bound for FedAvg: the same task without heterogeneity. Client half: centralised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedkd.engine import ClientId, Reply
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy

HOLDER = 0  # the client that holds all training data


@dataclass(frozen=True)
class State:
    """The student's entries, including BatchNorm statistics: every client is evaluated with them."""

    weights: Weights


class Centralised(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights", "numbers"})
    knowledge = "everybody's data"
    paper = "no paper: training on pooled data"
    pools_data = True

    def init(self, problem: Problem, stream: Stream) -> State:
        return State(problem.initial().weights)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        """The holder trains for the whole cohort, even if the cohort does not include it."""
        return {HOLDER: Payload(weights=state.weights, numbers={"budget": float(len(cohort))})}

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        (weights,) = (reply.payload.weights for reply in replies)
        assert weights is not None
        return State(weights), {}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return Payload(weights=state.weights)
