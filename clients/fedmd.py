"""FedMD, client half: sends logits on public images, learns the mean of all clients' logits, revisits its own data.

Source: Li and Wang, arXiv 1910.03581, Algorithm 1, and the authors' code; docs/strategies/fedmd.md. Server half: fedmd.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from fedkd import seeds
from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import divergences, losses
from fedkd.participation import Batch, Outcome, Site
from fedkd.payload import Payload
from fedkd.seeds import Stream
from fedkd.student import Student
from fedkd.training import forward, optimisers, public_set
from fedkd.training.optimisers import LocalOptimiser


class FedMD(Client):
    sends = frozenset({"probe_logits"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        digest: Literal["l1", "mse", "kl"] = "l1"  # distance to the mean logits; code: l1, the paper leaves it open
        digest_epochs: Annotated[int, Ge(1)] = 1  # passes over the round's public images
        digest_batch: Annotated[int, Ge(1)] = 32  # images per step; code: 256 of 5000, which gives as many steps
        digest_lr: Annotated[float, Gt(0)] | None = None  # learning rate; null: that of local training
        # The server's too
        public_epochs: Annotated[int, Ge(0)] = 0
        private_epochs: Annotated[int, Ge(0)] = 0

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        """The terms of both phases: public images come with the mean logits, own images with labels."""
        logits = student(batch.x)
        if "consensus" not in batch.per_sample:
            yield "ce", losses.cross_entropy(logits, batch.y)
        elif self.config.digest == "kl":
            yield "digest", losses.softened_kl(batch.per_sample["consensus"], logits, 1.0)
        else:
            yield "digest", divergences.OF_LOGITS[self.config.digest](batch.per_sample["consensus"], logits)

    def train(self, site: Site, job: Job) -> Outcome:
        x = public_set.agreed_images(site.problem, job.payload.numbers, job.round)
        return self._predict(site, job, x) if job.exchange == 0 else self._learn_and_revisit(site, job, x)

    def _predict(self, site: Site, job: Job, x: Tensor) -> Outcome:
        """The first exchange: reports logits. It trains only in a client's first round: the initial training."""
        student = site.student(job)
        numbers = {} if "is_prepared" in job.state.memory else self._prepare(site, job, student)
        outcome = site.close(self, job, student, None, numbers)
        state = replace(outcome.state, memory={**outcome.state.memory, "is_prepared": 1})
        # Initial training is not this round's training: the probe images are labelled after the second exchange.
        return replace(outcome, payload=Payload(probe_logits=forward.logits(student, x)), state=state, student=None)

    def _prepare(self, site: Site, job: Job, student: Student) -> dict[str, float]:
        """Initial training: on the labelled public set, then on the client's own data."""
        numbers = {}
        if epochs := self.config.public_epochs:
            x, y = public_set.images(site.problem), public_set.required(site.problem).samples.y
            numbers["initial_public"] = self._pass_over(site, job, student, "initial-public", x, y, epochs)
        if epochs := self.config.private_epochs:
            x, y = site.own(job.client)
            numbers["initial_private"] = self._pass_over(site, job, student, "initial-private", x, y, epochs)
        return numbers

    def _pass_over(
        self, site: Site, job: Job, student: Student, purpose: str, x: Tensor, y: Tensor, epochs: int
    ) -> float:
        size, stream = site.problem.train.batch, self._stream(site, job, purpose)
        labelled = public_set.batches(x, {"y": y}, size, stream, epochs=epochs)
        batches = (replace(batch, y=batch.per_sample["y"]) for batch in labelled)
        optimiser = site.optimiser(job, student.train().learnable, {})
        return optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))["ce"]

    def _learn_and_revisit(self, site: Site, job: Job, x: Tensor) -> Outcome:
        student = site.student(job).train()
        numbers = self._digest(site, job, student, x)
        drawn = site.draw(job)
        optimiser = site.optimiser(job, student.learnable)
        batches = site.batches(self, job, drawn)
        numbers |= optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))
        return site.close(self, job, student, drawn, numbers, optimiser)

    def _digest(self, site: Site, job: Job, student: Student, x: Tensor) -> dict[str, float]:
        """Learn the mean logits with a separate optimiser: the moments of one loss do not suit the other."""
        per_sample = {"consensus": job.payload.probe_logits}
        config, stream = self.config, self._stream(site, job, "digest")
        batches = public_set.batches(x, per_sample, config.digest_batch, stream, epochs=config.digest_epochs)  # type: ignore[arg-type]
        lr = config.digest_lr or optimisers.learning_rate(site.problem, job)
        optimiser = LocalOptimiser(site.problem.train, student.learnable, lr)
        return optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))

    def _stream(self, site: Site, job: Job, purpose: str) -> Stream:
        return seeds.stream(site.problem.seed, purpose, round=job.round, client=job.client)
