"""KnFu without a public set, client half: the head learns its teacher's predictions on generated latents.

Our design (docs/strategies/knfu-generated.md, equation 4). The extractor gets no gradient from latents. Server
half: knfu-generated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.participation import Batch, Trained
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.student import Student


class KnFuGenerated(Client):
    sends = frozenset({"weights", "label_counts"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        gamma: Annotated[float, Ge(0)] = 1.0  # weight of the teacher on latents; 0 = off
        alpha: Annotated[float, Ge(0)] = 1.0  # weight of cross entropy with the latents' labels, FedGen's; 0 = off
        latent_batch: Annotated[int, Ge(1)] = 32  # latents per step
        temperature: Annotated[float, Gt(0)] = 1.0  # the server's too

    def notes(self, problem: Problem) -> Iterator[str]:
        if not (self.config.gamma or self.config.alpha):
            yield "strategy.gamma and strategy.alpha are 0, so latents teach nothing: what is left is training alone"

    def draw(self, job: Job, y: Tensor, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        samples = job.payload.samples
        if samples is None:
            return {}
        return {"rows": torch.randint(len(samples["y"]), (self.config.latent_batch,), generator=generator)}

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)
        payload, rows = job.payload, batch.drawn.get("rows")
        if rows is None or payload.samples is None or payload.probe_logits is None:
            return
        logits = student.classify(payload.samples["z"][rows])
        if self.config.gamma:
            temperature = self.config.temperature
            target = payload.probe_logits[rows].softmax(1)
            yield "knfu", self.config.gamma * temperature**2 * losses.kl(target, logits / temperature)
        if self.config.alpha:
            yield "latent", self.config.alpha * losses.cross_entropy(logits, payload.samples["y"][rows])

    def report(self, trained: Trained, job: Job) -> Payload:
        """The head, and how often each label was drawn."""
        return Payload(weights=super().report(trained, job).weights, label_counts=trained.labels_drawn)
