"""SCAFFOLD, server half: averages weights, and the control variates that estimate the global gradient.

Source: Karimireddy et al., ICML 2020, Algorithm 1; docs/strategies/scaffold.md, equations 6 and 7. Client half:
scaffold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt

from fedkd.engine import ClientId, Reply
from fedkd.errors import ConfigError
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class State:
    """Global entries, and the sum of all clients' variates, each times the client's data size if sizes count."""

    weights: Weights
    total: Weights  # sum_k a_k c_k over all clients, of the learnable entries; a_k = 1 or n_k
    sizes: Mapping[str, int]  # n_k of the clients that have replied so far, by number
    clients: int  # K


class Scaffold(Strategy[State]):
    needs = frozenset({"weights", "reference"})
    gives = frozenset({"weights", "reference", "numbers"})
    knowledge = "weights, control variates"
    paper = "Karimireddy et al., ICML 2020"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        weighting: Literal["uniform", "examples"] = "uniform"  # paper: uniform; examples: as FedDyn's code scales it
        server_lr: Annotated[float, Gt(0)] = 1.0  # paper: eta_g. Of the mean update; BatchNorm statistics are averaged

    def init(self, problem: Problem, stream: Stream) -> State:
        if problem.train.optimiser != "sgd":
            raise ConfigError(
                f"scaffold infers gradients from SGD's steps, and train.optimiser = {problem.train.optimiser}",
                where="train.optimiser",
                mend="use train.optimiser=sgd",
            )
        if problem.train.nesterov:
            what = "scaffold infers gradients from steps of plain momentum, and train.nesterov is true"
            raise ConfigError(what, where="train.nesterov", mend="use train.nesterov=false")
        student = problem.initial()
        entries = problem.shared(student.weights)
        zeros = {name: torch.zeros_like(entries[name]) for name in student.learnable}
        return State(entries, zeros, {}, problem.clients)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        by_size = self.config.weighting == "examples" and state.sizes
        numbers = {"mean_size": fusion.mean_size(state.sizes)} if by_size else None
        payload = Payload(weights=state.weights, reference=self._control(state), numbers=numbers)
        return dict.fromkeys(cohort, payload)

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        by_size = self.config.weighting == "examples"
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        weights = self._step(state, fusion.fuse_weights(replies, trust_1K1))
        total = {name: value.clone() for name, value in state.total.items()}
        for reply in replies:  # in order of client
            for name, change in (reply.payload.reference or {}).items():
                total[name] += change * (reply.num_examples if by_size else 1)
        sizes = {**state.sizes, **{str(reply.client): reply.num_examples for reply in replies}}
        after = State(weights, total, sizes, state.clients)
        squares = [value.double().square().sum() for value in self._control(after).values()]
        return after, {**fusion.describe(trust_1K1), "control_norm": float(torch.stack(squares).sum().sqrt())}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return Payload(weights=state.weights)

    def _control(self, state: State) -> Weights:
        """c, the mean of all clients' variates; the variate of a client that never replied is 0."""
        scale = fusion.mean_size(state.sizes) if self.config.weighting == "examples" else 1.0
        return {name: total / (state.clients * scale) for name, total in state.total.items()}

    def _step(self, state: State, mean: Weights) -> Weights:
        """w + eta_g (mean of the clients' w - w); for eta_g = 1 the mean itself, bit for bit."""
        lr = self.config.server_lr
        if lr == 1:
            return mean
        return {n: state.weights[n].lerp(value, lr) if n in state.total else value for n, value in mean.items()}
