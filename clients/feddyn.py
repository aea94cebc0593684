"""FedDyn, client half: cross entropy, and a pull towards the received weights minus the client's movement so far.

Source: Acar et al., ICLR 2021; docs/strategies/feddyn.md, equations 1 to 3. Server half: feddyn.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Outcome, Site, Trained
from fedkd.student import Student


class FedDyn(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        alpha: Annotated[float, Ge(0), Off("FedAvg")] = 0.01  # of both pull terms; paper: 0.1 to 0.001, code: 0.01

    def train(self, site: Site, job: Job) -> Outcome:
        """Where sizes count, adds omega_k, the client's size divided by the mean size, to the job's numbers."""
        numbers = job.payload.numbers or {}
        if mean_size := numbers.get("mean_size"):
            omega = len(site.train_index[job.client]) / mean_size
            job = replace(job, payload=replace(job.payload, numbers={**numbers, "omega": omega}))
        return site.fit(self, anchored(job))

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)
        if self.config.alpha:
            alpha = self.config.alpha / (job.payload.numbers or {}).get("omega", 1.0)
            yield "proximal", alpha * losses.proximal(student.learnable, job.payload.reference or {})

    def next_memory(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        """-h_k / alpha: how far the client has moved in all its participations."""
        received, before = job.payload.weights or {}, job.state.memory.get("moved")
        moved = {n: p.detach() - received[n] for n, p in trained.student.learnable.items() if n in received}
        return {"moved": {n: before[n] + value if before else value for n, value in moved.items()}}


def anchored(job: Job) -> Job:
    """The job whose `reference` is the point that pulls its client: received weights + h_k / alpha.

    alpha / 2 |w - w_t|^2 - <h_k, w> and alpha / 2 |w - w_t - h_k / alpha|^2 differ by a constant: same gradient.
    """
    received, moved = job.payload.weights or {}, job.state.memory.get("moved")
    anchor = received if moved is None else {n: received[n] - value for n, value in moved.items()}
    return replace(job, payload=replace(job.payload, reference=anchor))
