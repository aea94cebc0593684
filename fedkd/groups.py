"""Groups: a strategy that averages weights, played once for each architecture among students that differ.

Asked for by `students.mixed=groups`; knowledge then crosses within a group only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd import metrics
from fedkd.engine import ClientId, Job, Reply
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """The inner strategy's state of each architecture, and the architecture of each client."""

    groups: Mapping[str, Any]
    assigned: tuple[str, ...]


class Grouped(Strategy[State]):
    """`inner`, a federation for each architecture. It serves no global student."""

    works_across_students = True
    serves = "personal"

    def __init__(self, inner: Strategy[Any]) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.needs, self.gives, self.exchanges = inner.needs, inner.gives, inner.exchanges  # type: ignore[misc]
        self.paper, self.proxy, self.knowledge = inner.paper, inner.proxy, inner.knowledge  # type: ignore[misc]

    def init(self, problem: Problem, stream: Stream) -> State:
        names = sorted(set(problem.assigned))
        return State(
            {name: self.inner.init(problem.alike(name), stream.child(name)) for name in names}, problem.assigned
        )

    def trips(self, round: int) -> int:
        return self.inner.trips(round)

    def asks(self, cohort: Cohort) -> frozenset[str]:
        return self.inner.asks(cohort)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        payloads: dict[ClientId, Payload] = {}
        for name, inner in state.groups.items():
            members = tuple(client for client in cohort if state.assigned[client] == name)
            if members:
                payloads |= self.inner.plan(inner, Cohort(members, cohort.round, cohort.exchange))
        return payloads

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        self.inner.inspect(state.groups[state.assigned[job.client]], job, reply)

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        """Findings are means over the groups that had replies; what is no number is left out."""
        groups, found = dict(state.groups), []
        for name, inner in state.groups.items():
            theirs = [reply for reply in replies if state.assigned[reply.client] == name]
            if theirs:
                groups[name], findings = self.inner.aggregate(inner, theirs, stream.child(name))
                found.append({key: value for key, value in findings.items() if isinstance(value, int | float)})
        return State(groups, state.assigned), metrics.mean_by_name(found)

    def served(self, state: State, client: ClientId | None) -> Payload | None:
        return None if client is None else self.inner.served(state.groups[state.assigned[client]], client)
