"""Local, server half: nothing crosses. Each client trains alone, in the rounds in which it is selected.

The baseline that any exchange of knowledge must beat. Client half: supervised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedkd.engine import ClientId, Reply
from fedkd.payload import Numbers, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """The number of rounds done: all else stays with the clients."""

    round: int


class Local(Strategy[State]):
    needs = frozenset()
    gives = frozenset()
    knowledge = "nothing"
    works_across_students = True
    serves = "personal"
    paper = "no paper: training without federation"

    def init(self, problem: Problem, stream: Stream) -> State:
        return State(0)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, Payload())

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        return State(state.round + 1), {}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None
