"""FedDF, client half: supervised training. Statistics that are not averaged with the weights go up beside them.

Source: Lin et al., NeurIPS 2020. Server half: feddf, which predicts with each client's student as the client has it.
"""

from collections.abc import Iterator

from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.participation import Batch, Trained
from fedkd.payload import Payload
from fedkd.student import Student


class FedDF(Client):
    sends = frozenset({"weights", "samples"})
    not_by_label = frozenset({"samples"})  # one row per client

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)

    def report(self, trained: Trained, job: Job) -> Payload:
        """Statistics (1, ...), one row per entry; none if they are averaged with the weights."""
        weights = super().report(trained, job).weights
        stay = {name: value for name, value in trained.student.statistics.items() if name not in (weights or {})}
        return Payload(weights=weights, samples={name: value.detach().clone()[None] for name, value in stay.items()})
