"""DS-FL, client half: trains locally, predicts public images, and trains on the sharpened mean of all predictions.

Source: Itahara et al., IEEE TMC 2021; docs/strategies/dsfl.md, equation 3. Server half: dsfl.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from fedkd import seeds
from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.participation import Batch, Outcome, Site
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training import forward, optimisers, public_set
from fedkd.training.optimisers import LocalOptimiser


class DSFL(Client):
    sends = frozenset({"probe_logits"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        distil_epochs: Annotated[int, Ge(1)] = 2  # passes over the round's public images
        distil_batch: Annotated[int, Ge(1)] = 32  # images per step
        distil_lr: Annotated[float, Gt(0)] | None = None  # learning rate; null: that of local training

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        """The terms of both phases: public images come with their target, own images with labels."""
        logits = student(batch.x)
        if "target" in batch.per_sample:
            yield "distil", losses.cross_entropy(logits, batch.per_sample["target"])
        else:
            yield "ce", losses.cross_entropy(logits, batch.y)

    def train(self, site: Site, job: Job) -> Outcome:
        x = public_set.agreed_images(site.problem, job.payload.numbers, job.round)
        return self._train_and_predict(site, job, x) if job.exchange == 0 else self._distil(site, job, x)

    def _train_and_predict(self, site: Site, job: Job, x: Tensor) -> Outcome:
        outcome = site.fit(self, job)
        assert outcome.student is not None
        return replace(outcome, payload=Payload(probe_logits=forward.logits(outcome.student, x).softmax(1)))

    def _distil(self, site: Site, job: Job, x: Tensor) -> Outcome:
        config, student = self.config, site.student(job).train()
        stream = seeds.stream(site.problem.seed, "distil", round=job.round, client=job.client)
        per_sample = {"target": job.payload.probe_logits}
        batches = public_set.batches(x, per_sample, config.distil_batch, stream, epochs=config.distil_epochs)  # type: ignore[arg-type]
        lr = config.distil_lr or optimisers.learning_rate(site.problem, job)
        optimiser = LocalOptimiser(site.problem.train, student.learnable, lr)
        numbers = optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))
        return site.close(self, job, student, None, numbers)
