"""Ditto, client half: trains the received weights as FedAvg does, then the client's own student on the same batches.

Source: Li et al., ICML 2021, algorithm 1; docs/strategies/ditto.md, equations 1 and 2. Server half: ditto.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Outcome, Site
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training import optimisers


class Ditto(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        pull: Annotated[float, Ge(0), Off("FedAvg")] = 1.0  # paper: lambda, 0.1 to 2. Own student to received weights

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        """The loss of the client's own student."""
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)
        if self.config.pull:
            yield "proximal", self.config.pull * losses.proximal(student.learnable, job.payload.weights or {})

    def train(self, site: Site, job: Job) -> Outcome:
        """Both students start from their values before this participation: the pull is to the weights as received."""
        drawn, student = site.draw(job), site.student(job).train()
        shared = site.fit(
            self,
            job,
            student,
            batches=drawn,
            terms=lambda batch: iter([("received", losses.cross_entropy(student(batch.x), batch.y))]),
        )
        own = site.student(replace(job, payload=Payload())).train()  # the same module; its entries were copied before
        optimiser = site.optimiser(job, own.learnable, job.state.memory.get("optimiser", {}))
        batches = site.batches(self, job, drawn)
        numbers = optimisers.minimise(optimiser, batches, lambda batch: self.terms(own, batch, job))
        memory = {**shared.state.memory, "optimiser": optimiser.memory()}
        state = replace(shared.state, kept=own.weights, memory=memory)
        return replace(shared, state=state, numbers={**numbers, **shared.numbers}, student=own)
