"""FedProto, client half: keeps latents near the federation's prototype of their label, and classifies by prototypes.

Source: Tan et al., AAAI 2022, equations 3 and 7; docs/strategies/fedproto.md, equations 1 to 4. Server half: fedproto.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.models.predictors import Predictor, Prototypes, SingleModel
from fedkd.off import Off
from fedkd.participation import Batch, LocalBatches, Outcome, Site
from fedkd.student import Student
from fedkd.training import class_tables, forward


class FedProto(Client):
    sends = frozenset({"prototypes", "label_counts"})
    personal_predictor = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        lam: Annotated[float, Ge(0), Off("local training")] = 1.0  # of prototypes. Paper: 1 on MNIST, 0.1 on CIFAR-10
        source: Literal["all", "last_epoch"] = "all"  # of prototypes: after training; code: during the last epoch
        inference: Literal["prototype", "head"] = "prototype"  # label of the nearest prototype, or the head's

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        z = student.features(batch.x)
        yield "ce", losses.cross_entropy(student.classify(z), batch.y)
        prototypes, counts = job.payload.prototypes, job.payload.label_counts
        if prototypes is None or counts is None or not self.config.lam:
            return
        # The mean is over coordinates and the whole batch: samples without a prototype count as 0.
        known = counts[batch.y] > 0
        yield "prototype", self.config.lam * ((z - prototypes[batch.y]).square().mean(1) * known).mean()

    def train(self, site: Site, job: Job) -> Outcome:
        student = site.student(job).train()
        drawn = site.draw(job)
        outcome, outputs = class_tables.fit_recording(self, site, job, student, drawn)
        if self.config.source == "all":
            x, y = site.own(job.client)
            z = forward.latents(student, x)
        else:
            z = outputs.latents(last_epoch(drawn, len(site.train_index[job.client])))
            y = drawn.y[len(drawn.y) - len(z) :]
        sums_Cd, counts_C = class_tables.sums(z, y, site.problem.classes)
        payload = replace(outcome.payload, prototypes=class_tables.means(sums_Cd, counts_C), label_counts=counts_C)
        return replace(outcome, payload=payload)

    def predictor(self, job: Job) -> Predictor:
        """Classifies by the nearest prototype; by the head if there are no prototypes yet."""
        prototypes, counts = job.payload.prototypes, job.payload.label_counts
        if self.config.inference == "head" or prototypes is None or counts is None:
            return SingleModel()
        return Prototypes(prototypes, counts != 0)


def last_epoch(drawn: LocalBatches, num_examples: int) -> int:
    """The last step from which at least `num_examples` samples are drawn to the end; 0 if there is none."""
    samples = 0
    for step in reversed(range(len(drawn.sizes))):
        samples += drawn.sizes[step]
        if samples >= num_examples:
            return step
    return 0
