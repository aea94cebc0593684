"""FedEnsemble, client half: supervised training; what is judged is the ensemble that the server serves.

Source: FedGen's code; docs/strategies/fedensemble.md, equations 1 and 2. Server half: fedensemble.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from fedkd import losses
from fedkd.client import Batch, Client
from fedkd.engine import Job
from fedkd.student import Student


class FedEnsemble(Client):
    own_logits = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        combine: Literal["logits", "probabilities"] = "logits"  # FedGen's code sums logits; or mean of probabilities

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)

    def logits(self, student: Student, x: Tensor, job: Job) -> Tensor:
        """Mean of the members' logits, whose largest is their sum's; or log of the mean of their probabilities."""
        if job.payload.samples is None:
            return student(x)
        members, copies = dict(job.payload.samples), job.payload.samples["copies"]
        del members["copies"]
        each_MBC = torch.stack([_member(student, members, m, x) for m in range(len(copies))])
        if self.config.combine == "probabilities":
            each_MBC = each_MBC.softmax(-1)
        share_M = copies.to(each_MBC.dtype) / copies.sum()
        mean_BC = torch.tensordot(share_M, each_MBC, 1)
        return mean_BC if self.config.combine == "logits" else mean_BC.clamp(min=1e-30).log()


def _member(student: Student, members: dict[str, Tensor], number: int, x: Tensor) -> Tensor:
    """Logits of one member: the student lends its form only."""
    logits: Tensor = functional_call(student, {name: rows[number] for name, rows in members.items()}, (x,))
    return logits
