"""KnFu (reconstruction), client half: trains on its own data, sends logits on a public set, learns from its teacher.

Source: Seyedmohammadi et al., arXiv 2403.11892; docs/strategies/knfu.md, equation 6. Server half: knfu.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from fedkd import seeds
from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, LocalBatches, Outcome, Site, Trained
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training import forward, optimisers, public_set


class KnFu(Client):
    sends = frozenset({"probe_logits", "label_counts"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        distill_epochs: Annotated[int, Ge(0), Off("local training")] = 1  # passes over the public set per round
        distill_batch: Annotated[int, Ge(1)] = 64  # public images per step
        distill_weight: Annotated[float, Ge(0), Off("local training")] = 1.0  # paper: lambda, of unknown value
        common_before: bool = False  # whether to also test the student before fine-tuning on the common test images
        # The server's too
        epd: Literal["mean_soft", "argmax_hist", "reported", "class_table"] = "mean_soft"
        temperature: Annotated[float, Gt(0)] = 1.0
        fine_tune_ce: Literal["none", "private", "transfer"] = "none"

    def train(self, site: Site, job: Job) -> Outcome:
        """Exchange 0 trains on private data, exchange 1 on the teacher. A teacher in exchange 0 comes first."""
        x = public_set.agreed_images(site.problem, job.payload.numbers, job.round)  # all public images, in their order
        student = site.student(job).train()
        optimiser = site.optimiser(job, student.learnable)
        private = self._private_share(job)
        drawn = site.draw(job) if job.exchange == 0 or private else None
        numbers: dict[str, float] = {}
        if job.payload.probe_logits is not None:
            batches = self._fine_tuning(site, job, x, drawn if private else None)
            numbers |= optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))
            numbers |= self._scores(site, job, student, "after") if job.exchange == 0 else {}
        if job.exchange == 0 and drawn is not None:
            student.train()
            batches = site.batches(self, job, drawn)
            local = optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))
            numbers = local | numbers
            numbers |= {} if "alma_after" in numbers else self._scores(site, job, student, "before")
        return site.close(self, job, student, drawn, numbers, optimiser)

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        logits = student(batch.x)
        if "teacher" in batch.per_sample:
            if weight := self.config.distill_weight:
                temperature = self.config.temperature
                kl = losses.kl(batch.per_sample["teacher"], logits / temperature)
                yield "distil", weight * temperature**2 * kl
            if self.config.fine_tune_ce == "transfer":
                yield "transfer_ce", losses.cross_entropy(logits, batch.per_sample["label"])
        elif "beside" in batch.per_sample:
            yield "private_ce", self._private_share(job) * losses.cross_entropy(logits, batch.y)
        else:
            yield "ce", losses.cross_entropy(logits, batch.y)

    def report(self, trained: Trained, job: Job) -> Payload:
        if job.exchange == 1:
            return Payload()
        counts = trained.site.label_counts(job.client) if self.config.epd == "reported" else None
        x = public_set.agreed_images(trained.site.problem, job.payload.numbers, job.round)
        return Payload(probe_logits=forward.logits(trained.student, x), label_counts=counts)

    def _private_share(self, job: Job) -> float:
        """Weight of cross entropy on private batches, which alternate with public ones: 1 - lambda; 0 = none."""
        is_taught = job.payload.probe_logits is not None and self.config.distill_epochs > 0
        if self.config.fine_tune_ce != "private" or not is_taught:
            return 0.0
        return max(0.0, 1.0 - self.config.distill_weight)

    def _fine_tuning(self, site: Site, job: Job, x: Tensor, private: LocalBatches | None) -> Iterator[Batch]:
        """Public batches with the teacher's rows, shuffled by a separate stream, alternating with `private` batches."""
        assert job.payload.probe_logits is not None
        per_sample = {
            "teacher": job.payload.probe_logits.softmax(1),
            "label": public_set.required(site.problem).samples.y,
        }
        order = seeds.stream(site.problem.seed, "transfer", round=job.round, client=job.client)
        beside = list(site.batches(self, job, private)) if private is not None else []
        is_public = bool(self.config.distill_weight or self.config.fine_tune_ce == "transfer")
        for batch in public_set.batches(
            x, per_sample, self.config.distill_batch, order, epochs=self.config.distill_epochs
        ):
            if is_public:
                yield batch
            if beside:
                own = beside[batch.step % len(beside)]
                yield replace(own, per_sample={"beside": own.y})

    def _scores(self, site: Site, job: Job, student: Student, moment: str) -> dict[str, float]:
        """The client's accuracy before or after fine-tuning, on its own test split and perhaps on the common one."""
        scores = {}
        if len(site.test_index[job.client]):
            scores[f"alma_{moment}"] = site.score(self, student, job)
        if self.config.common_before and site.common is not None and len(site.common):
            x, y = site.test.take(site.common)
            scores[f"common_{moment}"] = float((forward.logits(student, x).argmax(1) == y).float().mean())
        return scores
