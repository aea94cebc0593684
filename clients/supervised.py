"""Supervised client half: cross entropy on the client's own data. Server half: fedavg, or any other that averages."""

from collections.abc import Iterator

from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.participation import Batch
from fedkd.student import Student


class Supervised(Client):
    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)
