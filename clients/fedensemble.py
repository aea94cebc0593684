"""FedEnsemble, client half: supervised training; evaluation uses the ensemble that the server sends.

Source: FedGen's code; docs/strategies/fedensemble.md, equations 1 and 2. Server half: fedensemble.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.models.predictors import Ensemble, Predictor, SingleModel
from fedkd.participation import Batch
from fedkd.student import Student


class FedEnsemble(Client):
    personal_predictor = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        combine: Literal["logits", "probabilities"] = "logits"  # sum of logits (FedGen's code), or mean probability

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)

    def predictor(self, job: Job) -> Predictor:
        if job.payload.samples is None:
            return SingleModel()
        rows = dict(job.payload.samples)
        copies = rows.pop("copies")
        members = [{name: entry[number] for name, entry in rows.items()} for number in range(len(copies))]
        return Ensemble(copies.to(torch.float32) / copies.sum(), self.config.combine, members)
