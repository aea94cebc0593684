"""FedNTD, client half: preserves what the received student knows about a sample's other classes.

Source: Lee et al., NeurIPS 2022; docs/strategies/fedntd.md, equation 1. Server half: fedavg.
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
from fedkd.off import Off
from fedkd.participation import Batch, Site
from fedkd.student import Student
from fedkd.training import teachers


class FedNTD(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        beta: Annotated[float, Ge(0), Off("FedAvg")] = 1.0  # weight of the distillation
        temperature: Annotated[float, Gt(0)] = 1.0  # paper: tau; released configuration: 1, its class: 3

    def precompute(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        return {"teacher": teachers.logits(site, job, x, position)} if self.config.beta else {}

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        logits = student(batch.x)
        yield "ce", losses.cross_entropy(logits, batch.y)
        if self.config.beta and batch.per_sample:
            teacher = not_true(batch.per_sample["teacher"], batch.y)
            distilled = losses.softened_kl(teacher, not_true(logits, batch.y), self.config.temperature)
            yield "not_true", self.config.beta * distilled


def not_true(logits_BC: Tensor, y_B: Tensor) -> Tensor:
    """The logits of all classes except for a sample's own, (B, C - 1): removed before the softmax, not masked after."""
    batch, classes = logits_BC.shape
    others_B1 = torch.arange(classes - 1).expand(batch, -1)
    return logits_BC.gather(1, others_B1 + (others_B1 >= y_B[:, None]))
