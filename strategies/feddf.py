"""FedDF, server half: averages weights, then trains the average on the received students' mean logits on public images.

Source: Lin et al., NeurIPS 2020, Algorithms 1 and 3, and the authors' code; docs/strategies/feddf.md,
equations 1 to 4. Client half: feddf.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from fedkd import state_values
from fedkd.border.checks import Refused
from fedkd.config import TrainConfig
from fedkd.engine import ClientId, Job, Reply
from fedkd.maths import diagnostics, fusion, losses, metrics
from fedkd.off import Off
from fedkd.participation import Batch
from fedkd.payload import Findings, Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.student import Student
from fedkd.training import forward, optimisers, public_set
from fedkd.training.optimisers import LocalOptimiser

NOTHING = 1e-9  # nats from the teacher; below this the gap is rounding, which Adam would magnify


@dataclass(frozen=True)
class State:
    """The averaged and distilled entries of each architecture; the name is empty if all clients share one."""

    problem: Problem = field(metadata=state_values.CONSTANT)
    weights: Mapping[str, Weights]


class FedDF(Strategy[State]):
    needs = frozenset({"weights", "samples"})
    gives = frozenset({"weights"})
    knowledge = "weights, then the mean of their logits on public images"
    proxy = "yes"
    works_across_students = True
    paper = "Lin et al., NeurIPS 2020"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        weighting: fusion.Weighting = "examples"  # of the average
        teachers: fusion.Weighting = "uniform"  # of clients in the mean of logits, the teacher. Paper: uniform
        distil_steps: Annotated[int, Ge(0), Off("FedAvg")] = 100  # Adam's, per round. Code: up to 10000, stopped early
        distil_batch: Annotated[int, Ge(1)] = 128  # public images per step
        distil_lr: Annotated[float, Gt(0)] = 1e-3  # Adam's, annealed to 0 along a cosine within the round
        distil_clip: Annotated[float, Gt(0)] | None = 5.0  # the gradient's norm is at most this; null: not clipped
        statistics: Literal["frozen", "moving"] = "frozen"  # BatchNorm's in distillation: the average's, or the batch's

    def init(self, problem: Problem, stream: Stream) -> State:
        public_set.required(problem)
        initial = {name: shared(problem, name, problem.alike(name).initial()) for name in problem.architectures}
        return State(problem, initial)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        payloads = {name: Payload(weights=weights) for name, weights in state.weights.items()}
        return {client: payloads[state.problem.architecture(client)] for client in cohort}

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        """`samples` are the statistics that are not averaged with the weights, one row each."""
        sent, travels = reply.payload.samples or {}, job.payload.weights or {}
        statistics = state.problem.of(job.client).shape.statistics
        wanted = {name: value for name, value in statistics.items() if name not in travels}
        if set(sent) != set(wanted):
            raise Refused("names", f"samples has entries {sorted(sent)}, expected {sorted(wanted)}")
        for name, value in wanted.items():
            if sent[name].shape != (1, *value.shape) or sent[name].dtype != value.dtype:
                raise Refused("shape", f"samples: '{name}' has shape {tuple(sent[name].shape)}")
            if name.endswith("running_var") and bool((sent[name] < 0).any()):
                raise Refused("range", f"samples: '{name}' has negative variances")

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        """Averages, then distils, each group; a group without replies keeps its entries."""
        groups = by_architecture(state.problem, replies)
        weights = {name: self._average(theirs) for name, theirs in groups.items()}
        findings: dict[str, Any] = dict(fusion.describe(self._trust(replies)))
        if self.config.distil_steps:
            x = public_set.images(state.problem)
            logits_KNC = all_logits(state.problem, replies, x).double()
            teacher_NC = self._mean(logits_KNC, replies).softmax(1)  # the mean is of logits, not of probabilities
            findings |= diagnostics.of_fused(logits_KNC.softmax(2), teacher_NC[None], public_set.labels(state.problem))
            weights, numbers = self._teach(state.problem, groups, weights, x, teacher_NC, stream)
            findings |= numbers
        return State(state.problem, {**state.weights, **weights}), findings

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        if client is not None:
            return Payload(weights=state.weights[state.problem.architecture(client)])
        # With one student per architecture there is no global student.
        return None if state.problem.assigned else Payload(weights=state.weights[""])

    def _trust(self, replies: Sequence[Reply]) -> Tensor:
        return fusion.by_weighting(self.config.weighting, replies)

    def _average(self, replies: Sequence[Reply]) -> Weights:
        return fusion.fuse_weights(replies, self._trust(replies))

    def _mean(self, logits_KNC: Tensor, replies: Sequence[Reply]) -> Tensor:
        if self.config.teachers == "uniform":
            return logits_KNC.mean(0)
        return torch.tensordot(fusion.by_examples(replies).flatten().double(), logits_KNC, 1)

    def _teach(
        self,
        problem: Problem,
        groups: Mapping[str, Sequence[Reply]],
        averages: Mapping[str, Weights],
        x: Tensor,
        teacher_NC: Tensor,
        stream: Stream,
    ) -> tuple[dict[str, Weights], Numbers]:
        """Each group's average, distilled from the same teacher; numbers are means over the groups."""
        taught, numbers = {}, []
        for name, theirs in groups.items():
            student = problem.alike(name).initial().load(averages[name], mean_statistics(theirs))
            before = measure(student, x, teacher_NC, public_set.labels(problem))
            if before["gap"] >= NOTHING:
                self._distil(student, x, teacher_NC, stream.child(name))
            after = measure(student, x, teacher_NC, public_set.labels(problem))
            taught[name] = shared(problem, name, student)
            numbers.append(
                {f"{key}_before": value for key, value in before.items()}
                | {f"{key}_after": value for key, value in after.items()}
                | movement(averages[name], taught[name], theirs)
            )
        return taught, metrics.mean_by_name(numbers)

    def _distil(self, student: Student, x: Tensor, teacher_NC: Tensor, stream: Stream) -> None:
        """Train the student in place."""
        config = self.config
        student.train(config.statistics == "moving")
        settings = TrainConfig(optimiser="adam", lr=config.distil_lr, clip=config.distil_clip)
        optimiser = LocalOptimiser(settings, student.learnable, config.distil_lr)

        def terms(batch: Batch) -> Iterator[tuple[str, Tensor]]:
            optimiser.lr = config.distil_lr * (1 + math.cos(math.pi * batch.step / config.distil_steps)) / 2
            yield "distil", losses.kl(batch.per_sample["teacher"], student(batch.x))

        per_sample = {"teacher": teacher_NC.float()}
        batches = public_set.batches(x, per_sample, config.distil_batch, stream, steps=config.distil_steps)
        optimisers.minimise(optimiser, batches, terms)


def measure(student: Student, x: Tensor, teacher_NC: Tensor, y_N: Tensor | None) -> dict[str, float]:
    """gap: KL(teacher || student) in nats and float64, so 0 if equal; accuracy, if public images have labels."""
    logits_NC = forward.logits(student, x).double()
    measures = {"gap": float(losses.kl(teacher_NC, logits_NC).clamp(min=0))}
    if y_N is not None and bool((kept_N := y_N >= 0).any()):
        measures["accuracy"] = float((logits_NC.argmax(1) == y_N)[kept_N].double().mean())
    return measures


def movement(average: Weights, taught: Weights, replies: Sequence[Reply]) -> dict[str, float]:
    """moved: L2 distance from the average to the distilled student; moved_ratio: divided by the clients' mean distance.

    The clients' distances are from the average, too. A ratio above 1 means that distillation moved the average further
    than training moved the clients apart. If all clients are equal, there is no ratio.
    """
    moved = metrics.distance(taught, average)
    apart = [metrics.distance(reply.payload.weights or {}, average) for reply in replies]
    spread = math.fsum(apart) / len(apart)
    return {"moved": moved, "moved_ratio": moved / spread} if spread else {"moved": moved}


def shared(problem: Problem, architecture: str, student: Student) -> Weights:
    """The entries that travel to clients of an architecture."""
    return problem.alike(architecture).shared(student.weights)


def by_architecture(problem: Problem, replies: Sequence[Reply]) -> Mapping[str, list[Reply]]:
    """Replies by the architecture of their clients, in order of names."""
    groups: dict[str, list[Reply]] = {}
    for reply in replies:
        groups.setdefault(problem.architecture(reply.client), []).append(reply)
    return dict(sorted(groups.items()))


def all_logits(problem: Problem, replies: Sequence[Reply], x: Tensor) -> Tensor:
    """Logits (K, N, C) of every received student, in eval mode and with its own statistics."""
    modules = {name: problem.alike(name).initial() for name in by_architecture(problem, replies)}
    loaded = (modules[problem.architecture(r.client)].load(r.payload.weights or {}, statistics_of(r)) for r in replies)
    return torch.stack([forward.logits(student, x) for student in loaded])


def statistics_of(reply: Reply) -> Weights:
    """The statistics that a client sent beside its weights."""
    return {name: value[0] for name, value in (reply.payload.samples or {}).items()}


def mean_statistics(replies: Sequence[Reply]) -> Weights:
    """Mean statistics over clients of one architecture: distillation starts with them."""
    statistics = [statistics_of(reply) for reply in replies]
    return metrics.mean_statistics(statistics, tuple(statistics[0]))
