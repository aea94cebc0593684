"""FedProx, client half: supervised training with a pull towards the received weights.

Source: Li et al., MLSys 2020, equation 2. Server half: fedavg.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch
from fedkd.student import Student


class FedProx(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        mu: Annotated[float, Ge(0), Off("FedAvg")] = 0.01  # pull towards the received weights. Paper: 0.001 to 1, tuned
        decay: Annotated[float, Ge(0)] = 0.0  # weight decay that FedGen's code gives FedProx alone: 0.001

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)
        if self.config.mu:
            yield "proximal", self.config.mu * losses.proximal(student.learnable, job.payload.weights or {})
        if self.config.decay:
            yield "decay", self.config.decay * losses.squared_norm(student.learnable)
