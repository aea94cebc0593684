"""Ditto, server half: FedAvg. Each client also trains a student of its own, which never leaves the client.

Source: Li et al., ICML 2021; docs/strategies/ditto.md, equation 3. Client half: ditto.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedkd.engine import ClientId, Reply
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """The global entries, and whether they are a whole student: BatchNorm's statistics may stay with the clients."""

    weights: Weights
    is_whole: bool


class Ditto(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights"})
    serves = "both"
    paper = "Li et al., ICML 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        weighting: Literal["examples", "uniform"] = "examples"  # by size of the client's data, or equal

    def init(self, problem: Problem, stream: Stream) -> State:
        entries = problem.initial().weights
        shared = problem.shared(entries)
        return State(shared, len(shared) == len(entries))

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, Payload(weights=state.weights))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        return State(fusion.fuse_weights(replies, trust_1K1), state.is_whole), fusion.describe(trust_1K1)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        """None for a client: it uses its own student.

        There is no global student if statistics stay with the clients: kept statistics belong to their own students.
        """
        return Payload(weights=state.weights) if client is None and state.is_whole else None
