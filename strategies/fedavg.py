"""FedAvg, server half: the mean of the clients' weights, by the size of their data.

Source: McMahan et al., AISTATS 2017. Client half: supervised.
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
    """The global entries: all of them, or the head's."""

    weights: Weights


class FedAvg(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights"})
    paper = "McMahan et al., AISTATS 2017"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        share: Literal["all", "head"] = "all"  # what travels; the rest stays with each client
        weighting: Literal["examples", "uniform"] = "examples"  # by size of the client's data, or equal

    def init(self, problem: Problem, stream: Stream) -> State:
        return State(problem.shared(problem.initial().weights, self.config.share))

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, Payload(weights=state.weights))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        return State(fusion.fuse_weights(replies, trust_1K1)), fusion.describe(trust_1K1)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        is_partial = client is None and self.config.share == "head"
        return None if is_partial else Payload(weights=state.weights)
