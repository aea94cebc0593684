"""FedGKD, client half: distils the mean of past global students into the client's student.

Source: Yao et al., arXiv 2107.00051; docs/strategies/fedgkd.md, equation 2. Server half: fedgkd.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Site
from fedkd.student import Student
from fedkd.training import teachers


class FedGKD(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        gamma: Annotated[float, Ge(0), Off("FedAvg")] = 0.2  # gamma / 2 weighs the distillation; paper: 0.2, code: 0.1
        temperature: Annotated[float, Gt(0)] = 1.0  # of the KL, which is scaled by its square
        distance: Literal["kl", "mse"] = "kl"  # of softmax outputs, or of logits
        first_round: Annotated[int, Ge(1)] = 2  # with distillation; in 1 the only teacher is the untrained student

    def precompute(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        """The teacher's logits; without a separate teacher, the received student is the teacher."""
        if not self.config.gamma or job.round < self.config.first_round:
            return {}
        return {"teacher": teachers.logits(site, job, x, position, job.payload.reference or {})}

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        logits = student(batch.x)
        yield "ce", losses.cross_entropy(logits, batch.y)
        if self.config.gamma and batch.per_sample:
            yield "distil", self.config.gamma / 2 * self._distance(batch.per_sample["teacher"], logits)

    def _distance(self, teacher: Tensor, logits: Tensor) -> Tensor:
        if self.config.distance == "mse":
            return F.mse_loss(logits, teacher)
        return losses.softened_kl(teacher, logits, self.config.temperature)
