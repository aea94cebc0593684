"""KnFu without a public set, client half: private training with a pull to similar clients' mean logits per label.

Our design (docs/strategies/knfu-table.md, equations 1 and 5). Server half: knfu-table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Trained
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training import class_tables, forward


class KnFuTable(Client):
    sends = frozenset({"class_logits", "label_counts"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        gamma: Annotated[float, Ge(0), Off("local training")] = 1.0  # weight of the table, from a client's second round
        temperature: Annotated[float, Gt(0)] = 1.0  # the server's too

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        logits = student(batch.x)
        yield "ce", losses.cross_entropy(logits, batch.y)
        if self.config.gamma and job.payload.class_logits is not None:
            temperature, target = self.config.temperature, rows(job.payload, batch.y)
            yield "table", self.config.gamma * temperature**2 * losses.kl(target, logits / temperature)

    def report(self, trained: Trained, job: Job) -> Payload:
        """M_k (C, C) float32: mean logits by label, summed in float64; 0 for labels that the client lacks."""
        x, y = trained.site.own(job.client)
        logits = forward.logits(trained.student, x).double()
        sums_CC, counts_C = class_tables.sums(logits, y, trained.site.problem.classes)
        return Payload(class_logits=class_tables.means(sums_CC, counts_C).float(), label_counts=counts_C)


def rows(payload: Payload, y: Tensor) -> Tensor:
    """F_k[y] (B, C); 0 for a label without a teacher: its divergence is 0 for any student."""
    table, owners = payload.class_logits, payload.label_counts
    assert table is not None
    assert owners is not None
    return (table.softmax(1) * (owners > 0)[:, None]).index_select(0, y)
