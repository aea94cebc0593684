"""FML, server half: the plain mean of the memes, small students that travel; the clients' own students stay.

Source: Shen et al. 2020 (arXiv 2006.16765); docs/strategies/fml.md, equation 3. Client half: fml.
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
    """The meme's entries, and whether they are a whole student: BatchNorm's statistics may stay with the clients."""

    weights: Weights
    is_whole: bool


class FML(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights"})
    knowledge = "weights of a meme"
    works_across_students = True
    serves = "both"
    paper = "Shen et al. 2020, arXiv 2006.16765"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        weighting: Literal["examples", "uniform"] = "uniform"  # of the memes: equal, or by size of the client's data

    def init(self, problem: Problem, stream: Stream) -> State:
        entries = problem.initial().weights
        shared = problem.alike("").shared(entries)
        return State(shared, len(shared) == len(entries))

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, Payload(weights=state.weights))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        return State(fusion.fuse_weights(replies, trust_1K1), state.is_whole), fusion.describe(trust_1K1)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        """None for a client: it uses its private student.

        There is no global student if statistics stay with the clients: kept statistics belong to their own students.
        """
        return Payload(weights=state.weights) if client is None and state.is_whole else None
