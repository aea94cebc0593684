"""Groups: runs a strategy that averages weights once for each architecture of a mixture.

`students.mixed=groups` chooses it; knowledge then crosses only within a group. The inner strategy sees each group as a
whole federation, with its own number of clients, numbered from 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedkd.engine import ClientId, Job, Reply
from fedkd.maths import metrics
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """The inner strategy's state of each architecture, and the architecture of each client."""

    groups: Mapping[str, Any]
    assigned: tuple[str, ...]

    def number(self, client: ClientId) -> ClientId:
        """The client's number within its group."""
        return self.assigned[:client].count(self.assigned[client])

    def members(self, name: str) -> tuple[ClientId, ...]:
        """The clients of a group, by their number within it."""
        return tuple(client for client, architecture in enumerate(self.assigned) if architecture == name)


class Grouped(Strategy[State]):
    """`inner`, with one federation per architecture. It has no global student."""

    works_across_students = True
    serves = "personal"

    def __init__(self, inner: Strategy[Any]) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.needs, self.gives, self.exchanges = inner.needs, inner.gives, inner.exchanges  # type: ignore[misc]
        self.paper, self.proxy, self.knowledge = inner.paper, inner.proxy, inner.knowledge  # type: ignore[misc]

    def init(self, problem: Problem, stream: Stream) -> State:
        groups = {}
        for name in problem.architectures:
            alone = replace(problem.alike(name), clients=problem.assigned.count(name))
            groups[name] = self.inner.init(alone, stream.child(name))
        return State(groups, problem.assigned)

    def num_exchanges(self, round: int) -> int:
        return self.inner.num_exchanges(round)

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        return self.inner.expected_kinds(cohort)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        payloads: dict[ClientId, Payload] = {}
        for name, inner in state.groups.items():
            numbers = tuple(state.number(client) for client in cohort if state.assigned[client] == name)
            if numbers:
                members, planned = state.members(name), self.inner.plan(inner, replace(cohort, clients=numbers))
                payloads |= {members[number]: payload for number, payload in planned.items()}
        return payloads

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        number, inner = state.number(job.client), state.groups[state.assigned[job.client]]
        self.inner.inspect(inner, replace(job, client=number), replace(reply, client=number))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        """Findings are means over the groups that had replies, for plain numbers only."""
        groups, numbers = dict(state.groups), []
        for name, inner in state.groups.items():
            theirs = [
                replace(reply, client=state.number(reply.client))
                for reply in replies
                if state.assigned[reply.client] == name
            ]
            if theirs:
                groups[name], findings = self.inner.aggregate(inner, theirs, stream.child(name))
                numbers.append({key: value for key, value in findings.items() if isinstance(value, int | float)})
        return State(groups, state.assigned), metrics.mean_by_name(numbers)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        if client is None:
            return None
        return self.inner.evaluation_payload(state.groups[state.assigned[client]], state.number(client))
