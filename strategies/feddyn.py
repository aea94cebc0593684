"""FedDyn, server half: the mean of the clients' weights, plus the clients' accumulated movement.

Source: Acar et al., ICLR 2021, Algorithm 1; docs/strategies/feddyn.md, equations 4 and 5. Client half: feddyn.
The state holds -h / alpha, as the authors' code does: only the clients need alpha, and alpha = 0 divides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le

from fedkd.engine import ClientId, Reply
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """Global entries, the mean of the last cohort's, and the clients' total movement."""

    weights: Weights  # what clients get
    mean: Weights
    moved: Weights  # -h / alpha, of the learnable entries: (1/K) sum over rounds and clients of w_k - w
    sizes: Mapping[str, int]  # n_k of the clients that have replied so far, by number
    clients: int  # K


class FedDyn(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights", "numbers"})
    paper = "Acar et al., ICLR 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        server_memory: Annotated[float, Ge(0), Le(1)] = 1.0  # share of h added to the mean; paper: 1; 0: plain mean
        serve: Literal["corrected", "mean"] = "corrected"  # which global student is evaluated; clients get `corrected`
        weighting: Literal["uniform", "examples"] = "uniform"  # of clients' losses; examples: alpha_k = alpha / omega_k

    def init(self, problem: Problem, stream: Stream) -> State:
        student = problem.initial()
        entries = problem.shared(student.weights)
        zeros = {name: torch.zeros_like(entries[name]) for name in student.learnable}
        return State(entries, entries, zeros, {}, problem.clients)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        by_size = self.config.weighting == "examples" and state.sizes
        numbers = {"mean_size": fusion.mean_size(state.sizes)} if by_size else None
        return dict.fromkeys(cohort, Payload(weights=state.weights, numbers=numbers))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.uniformly(replies)
        mean = fusion.fuse_weights(replies, trust_1K1)
        share = len(replies) / state.clients  # divided by K, not by the cohort: the other clients have not moved
        moved = {n: value + share * (mean[n] - state.weights[n]) for n, value in state.moved.items()}
        weights = dict(mean)
        if factor := self.config.server_memory:
            weights |= {name: mean[name] + factor * value for name, value in moved.items()}
        sizes = {**state.sizes, **{str(reply.client): reply.num_examples for reply in replies}}
        squares = torch.stack([value.double().square().sum() for value in moved.values()])
        findings = {**fusion.describe(trust_1K1), "memory_norm": float(squares.sum().sqrt())}
        return State(weights, mean, moved, sizes, state.clients), findings

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return Payload(weights=state.weights if self.config.serve == "corrected" else state.mean)
