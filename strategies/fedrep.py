"""FedRep and FedPer, server half: averages the clients' bodies; heads stay with the clients.

Sources: Collins et al., ICML 2021; Arivazhagan et al. 2019 (arXiv 1912.00818); docs/strategies/fedrep.md,
equation 4. Client half: fedrep, which determines the order in which body and head train.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedkd.engine import ClientId, Reply
from fedkd.errors import ConfigError
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """The body: all entries except for the head's."""

    weights: Weights


class FedRep(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights"})
    knowledge = "weights except the head's"
    serves = "personal"
    paper = "Collins et al., ICML 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        weighting: Literal["examples", "uniform"] = "examples"  # by size of the client's data, or equal

    def init(self, problem: Problem, stream: Stream) -> State:
        entries = problem.shared(problem.initial().weights)
        body = {name: value for name, value in entries.items() if not name.startswith("head.")}
        if not body:
            what = "FedRep averages what lies below the head, and students.train leaves nothing of it to train"
            raise ConfigError(what, where="students.train", mend="train more than the head, or choose strategy=local")
        return State(body)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, Payload(weights=state.weights))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        return State(fusion.fuse_weights(replies, trust_1K1)), fusion.describe(trust_1K1)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None if client is None else Payload(weights=state.weights)
