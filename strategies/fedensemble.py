"""FedEnsemble, server half: FedAvg that predicts with the ensemble of all clients' students.

Source: FedGen's baseline (Zhu, Hong, Zhou, ICML 2021, authors' code); docs/strategies/fedensemble.md. Client
half: fedensemble.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedkd.engine import ClientId, Reply
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy

COPIES = "copies"  # a name without a dot, so it differs from all entries of members


@dataclass(frozen=True)
class State:
    """FedAvg's global entries and the ensemble of the last round.

    Members are stacked: each entry (M, ...), and `copies` (M,), how many clients hold each member. BatchNorm
    statistics that stay with clients: (K, ...) by name, one row per client.
    """

    weights: Weights
    statistics: Weights
    members: Weights
    clients: int  # K


class FedEnsemble(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights"})
    paper = "Zhu, Hong, Zhou, ICML 2021 (their baseline)"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        weighting: Literal["examples", "uniform"] = "examples"  # of the weights' mean; the ensemble has none

    def init(self, problem: Problem, stream: Stream) -> State:
        """If clients keep their BatchNorm statistics, all members start with the initial ones."""
        entries = problem.initial().weights
        shared = problem.shared(entries)
        own = {n: v.expand(problem.clients, *v.shape).clone() for n, v in entries.items() if n not in shared}
        return State(shared, own, {}, problem.clients)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        """One payload for all; or each client gets its own statistics back, so that all clients report theirs."""
        if not state.statistics:
            return dict.fromkeys(cohort, Payload(weights=state.weights))
        own = {client: {name: rows[client] for name, rows in state.statistics.items()} for client in cohort}
        return {client: Payload(weights={**state.weights, **own[client]}) for client in cohort}

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        fused = fusion.fuse_weights(replies, trust_1K1)
        weights = {name: fused[name] for name in state.weights}
        statistics = updated(state.statistics, replies)
        members = gathered(state, statistics, replies)
        return State(weights, statistics, members, state.clients), fusion.describe(trust_1K1)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        """The same payload for all clients; before the first round, the global student."""
        return Payload(samples=state.members) if state.members else Payload(weights=state.weights)


def updated(statistics: Weights, replies: Sequence[Reply]) -> Weights:
    """The statistics, with the rows of the clients that replied set to what they sent."""
    if not statistics:
        return {}
    clients = torch.tensor([reply.client for reply in replies])
    fresh = _stacked(statistics, replies)
    return {name: rows.index_copy(0, clients, fresh[name]) for name, rows in statistics.items()}


def gathered(state: State, statistics: Weights, replies: Sequence[Reply]) -> Weights:
    """The students that clients hold now: those sent in replies, else the broadcast one. `copies` counts equal ones."""
    fresh, idle = _stacked(state.weights, replies), state.clients - len(replies)
    broadcast = {name: torch.cat([fresh[name], sent[None]]) for name, sent in state.weights.items()}
    if not statistics:
        held = broadcast if idle else fresh
        copies = torch.tensor([1] * len(replies) + [idle] * bool(idle))
        return {**held, COPIES: copies}
    held_by = torch.full((state.clients,), len(replies))
    held_by[[reply.client for reply in replies]] = torch.arange(len(replies))
    return {
        **{name: rows[held_by] for name, rows in broadcast.items()},
        **statistics,
        COPIES: torch.ones(state.clients, dtype=torch.int64),
    }


def _stacked(names: Weights, replies: Sequence[Reply]) -> Weights:
    """These entries of all replies, (R, ...) by name."""
    return {name: torch.stack([(reply.payload.weights or {})[name] for reply in replies]) for name in names}
