"""DS-FL, server half: sharpens the clients' mean predictions on public images; a global student learns them too.

Source: Itahara et al., IEEE TMC 2021; docs/strategies/dsfl.md, equations 1 to 3. Client half: dsfl.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from fedkd import state_values
from fedkd.border import checks
from fedkd.border.checks import Refused
from fedkd.config import TrainConfig
from fedkd.engine import ClientId, Job, Reply
from fedkd.maths import diagnostics, fusion, losses
from fedkd.payload import Findings, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training import optimisers, public_set
from fedkd.training.optimisers import LocalOptimiser

TOLERANCE = 1e-3  # largest difference between a client's sum of probabilities and 1: float32 rounding is far below


@dataclass(frozen=True)
class State:
    """The global student, and the fused predictions of the last round's clients: (N, C) probabilities."""

    problem: Problem = field(metadata=state_values.CONSTANT)
    weights: Weights
    target: Tensor


class DSFL(Strategy[State]):
    needs = frozenset({"probe_logits"})
    gives = frozenset({"probe_logits", "numbers"})
    exchanges = 2
    knowledge = "mean probabilities on public images, sharpened"
    proxy = "yes"
    works_across_students = True
    serves = "both"
    paper = "Itahara et al., IEEE TMC 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        aggregation: Literal["era", "sa"] = "era"  # softmax(mean / temperature), or the plain mean
        temperature: Annotated[float, Gt(0)] = 0.1  # paper: T = 0.1, of probabilities; 1 flattens them
        public_size: Annotated[int, Ge(1)] = 500  # public images per round, chosen afresh; at most all
        global_epochs: Annotated[int, Ge(0)] = 2  # of the global student over the round's public images
        global_batch: Annotated[int, Ge(1)] = 32  # images per step
        global_lr: Annotated[float, Gt(0)] = 0.05  # of SGD

    def init(self, problem: Problem, stream: Stream) -> State:
        public_set.required(problem)
        return State(problem, problem.initial().weights, torch.empty(0))

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        return self.needs if cohort.exchange == 0 else frozenset()

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        numbers = public_set.describe(state.problem, self._size(state))
        target = state.target if cohort.exchange == 1 else None
        return dict.fromkeys(cohort, Payload(probe_logits=target, numbers=numbers))

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        checks.check_rows(reply, self._size(state))
        probs_NC = reply.payload.probe_logits
        if probs_NC is None:
            return
        if bool((probs_NC < 0).any()) or bool(((probs_NC.sum(1) - 1).abs() > TOLERANCE).any()):
            raise Refused("range", "probe_logits has rows that are no probabilities")

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        if replies[0].exchange == 1:
            return state, {}
        probs_KNC = fusion.stacked(replies, "probe_logits")
        mean_NC = probs_KNC.double().mean(0)
        target_NC = sharpen(mean_NC, self.config.temperature) if self.config.aggregation == "era" else mean_NC
        index = public_set.part(state.problem, self._size(state), replies[0].round)
        findings = {
            "entropy_before": entropy(mean_NC),
            "entropy_after": entropy(target_NC),
            **diagnostics.of_fused(probs_KNC, target_NC[None], public_set.labels(state.problem, index)),
        }
        weights, numbers = self._teach(state, public_set.images(state.problem, index), target_NC.float(), stream)
        return State(state.problem, weights, target_NC.float()), {**findings, **numbers}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return Payload(weights=state.weights) if client is None else None

    def _teach(self, state: State, x: Tensor, target_NC: Tensor, stream: Stream) -> tuple[Weights, dict[str, float]]:
        """The global student, trained on the same target as the clients."""
        config = self.config
        if not config.global_epochs:
            return state.weights, {}
        student = state.problem.initial().load(state.weights).train()
        optimiser = LocalOptimiser(TrainConfig(lr=config.global_lr), student.learnable, config.global_lr)
        per_sample = {"target": target_NC}
        size, order = config.global_batch, stream.child("global")
        batches = public_set.batches(x, per_sample, size, order, epochs=config.global_epochs)
        numbers = optimisers.minimise(
            optimiser,
            batches,
            lambda batch: iter([("global", losses.cross_entropy(student(batch.x), batch.per_sample["target"]))]),
        )
        return student.weights, numbers

    def _size(self, state: State) -> int:
        return public_set.size(state.problem, self.config.public_size)


def sharpen(probs_NC: Tensor, temperature: float) -> Tensor:
    """Entropy reduction aggregation: softmax(p / T) of *probabilities* p (N, C), rows over C classes.

    Probabilities differ by at most 1, so T = 1 flattens them. The rule is not the power p^(1/T), and not idempotent.
    """
    return (probs_NC / temperature).softmax(1)


def entropy(probs_NC: Tensor) -> float:
    """Mean over N rows of the entropy, in nats."""
    return float(torch.special.entr(probs_NC).sum(1).mean())
