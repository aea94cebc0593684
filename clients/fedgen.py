"""FedGen, client half: trains on real images and on generated latents, so that absent classes still teach the head.

Source: Zhu, Hong, Zhou, ICML 2021, equation 5, and the authors' code. Server half: fedgen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.models import generators
from fedkd.participation import Batch, Trained
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.student import Student


class FedGen(Client):
    sends = frozenset({"weights", "label_counts"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        alpha: Annotated[float, Ge(0)] = 10.0  # paper: 1 and no decay. Weight of cross entropy on latents; 0 = off
        beta: Annotated[float, Ge(0)] = 10.0  # code: 10 or 1, paper: absent. Weight of the latent KL; 0 = off
        regulariser_decay: Annotated[float, Gt(0), Le(1)] = 0.98  # of alpha and beta, per round
        regulariser_floor: Annotated[float, Ge(0)] = 1e-4  # alpha and beta do not fall below
        regularised_steps: Annotated[int, Ge(0)] = 20  # only the first steps of a participation are regularised
        synthetic_batch: Annotated[int, Ge(1)] = 32  # paper: B_G. Latents per step
        synthetic_labels: Literal["uniform", "proportional"] = "uniform"  # over labels reported so far; paper: by count
        noise_law: Literal["uniform", "normal"] = "uniform"  # the server's too

    def notes(self, problem: Problem) -> Iterator[str]:
        chosen = self.config
        if not chosen.regularised_steps or not (chosen.alpha or chosen.beta):
            which = "alpha and strategy.beta are" if chosen.regularised_steps else "regularised_steps is"
            yield f"strategy.{which} 0, so clients learn nothing from the generator: what is left is FedAvg"

    def draw(self, job: Job, y: Tensor, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        config, payload = self.config, job.payload
        if payload.generator is None or step >= config.regularised_steps:
            return {}
        distribution: generators.NoiseDistribution = config.noise_law
        counts = payload.label_counts.double()  # type: ignore[union-attr]
        if config.synthetic_labels == "uniform":
            counts = (counts > 0).double()
        width = noise_width(job)
        return {
            "labels": torch.multinomial(counts, config.synthetic_batch, replacement=True, generator=generator),
            "noise": generators.draw_noise((config.synthetic_batch, width), generator, distribution),
            "noise_real": generators.draw_noise((len(y), width), generator, distribution),
        }

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        logits = student(batch.x)
        yield "ce", losses.cross_entropy(logits, batch.y)
        if not batch.drawn:
            return
        if alpha := self._weight(self.config.alpha, job.round):
            labels = batch.drawn["labels"]
            generated = student.classify(latents(job, labels, batch.drawn["noise"]))
            yield "latent", len(labels) / batch.size * alpha * losses.cross_entropy(generated, labels)
        if beta := self._weight(self.config.beta, job.round):
            with torch.no_grad():  # the target is the client's own head on latents of the same labels
                target = student.classify(latents(job, batch.y, batch.drawn["noise_real"])).softmax(1)
            yield "kl", beta * losses.kl(target, logits)

    def report(self, trained: Trained, job: Job) -> Payload:
        weights = super().report(trained, job).weights
        return Payload(weights=weights, label_counts=1 + trained.labels_drawn)

    def _weight(self, initial: float, round: int) -> float:
        """max(floor, initial * decay^t), t = round - 1; a weight that starts at 0 stays off."""
        if not initial:
            return 0.0
        return max(self.config.regulariser_floor, initial * self.config.regulariser_decay ** (round - 1))


def latents(job: Job, labels: Tensor, noise: Tensor) -> Tensor:
    """Latents z (B, d) of the received generator, in eval mode and without gradient."""
    with torch.no_grad():
        return generators.generate(job.payload.generator, labels, noise)  # type: ignore[arg-type]


def noise_width(job: Job) -> int:
    """Width of the received generator's noise: its input without the one-hot label."""
    generator, counts = job.payload.generator, job.payload.label_counts
    return generator["hidden.weight"].shape[1] - len(counts)  # type: ignore[index, arg-type, operator]
