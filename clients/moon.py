"""MOON, client half: pulls latents to the global student's and pushes them from the client's previous student's.

Source: Li, He, Song, CVPR 2021; docs/strategies/moon.md, equations 1 to 3. Server half: fedavg.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Site, Trained
from fedkd.student import Student
from fedkd.training import teachers

EPS = 1e-8  # latents shorter than this have no direction, as in torch's cosine similarity


class Moon(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        mu: Annotated[float, Ge(0), Off("FedAvg")] = 1.0  # weight of the contrast; paper: 5 on CIFAR-10, 1 on CIFAR-100
        temperature: Annotated[float, Gt(0)] = 0.5  # paper: tau

    def precompute(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        """Latents of the global student and of the client's previous one; in its first round, the global one twice."""
        if not self.config.mu:
            return {}
        z_global = teachers.latents(site, job, x, position)
        previous = job.state.memory.get("previous")
        return {
            "z_global": z_global,
            "z_previous": teachers.latents(site, job, x, position, previous) if previous else z_global,
        }

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        z = student.features(batch.x)
        yield "ce", losses.cross_entropy(student.classify(z), batch.y)
        if self.config.mu and batch.per_sample:
            against = contrast(z, batch.per_sample["z_global"], batch.per_sample["z_previous"], self.config.temperature)
            yield "contrast", self.config.mu * against

    def next_memory(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        return {"previous": trained.student.weights}


def contrast(z_Bd: Tensor, global_Bd: Tensor, previous_Bd: Tensor, temperature: float) -> Tensor:
    """-log( e^(s(z, global)/T) / (e^(s(z, global)/T) + e^(s(z, previous)/T)) ), s the cosine; mean over the batch.

    B samples, latent width d. Where both references agree, the value is log 2 and the gradient is exactly 0.
    """
    towards_Bd = F.normalize(global_Bd, eps=EPS) - F.normalize(previous_Bd, eps=EPS)
    nearer_B = (F.normalize(z_Bd, eps=EPS) * towards_Bd).sum(1)  # s(z, global) - s(z, previous)
    return F.softplus(-nearer_B / temperature).mean()
