"""FedFuse, client half: students whose logits exclude their prior, and that learn the fused answers on transfer images.

Our own method (docs/strategies/fedfuse.md). First exchange: CE(z + log pi, y) on the client's data, then its logits on
the public set, or its weights where the server generates images. Second: KL to the fused answers, and its own data.
One student serves two distributions: argmax z + log pi for the client's own, argmax z for the global one. Server half:
fedfuse.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fedkd import seeds
from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import fusion, losses
from fedkd.models import image_generators
from fedkd.models.predictors import Predictor, PriorAdjusted, SingleModel
from fedkd.participation import Batch, LocalBatches, Outcome, Site, Trained
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training import forward, optimisers, public_set
from fedkd.training.forward import EVALUATION_BATCH


class FedFuse(Client):
    sends = frozenset({"probe_logits", "samples", "label_counts"})
    not_by_label = frozenset({"samples"})  # entries of the student

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        gamma: Annotated[float, Ge(0)] = 1.0  # weight of the client's own data beside the transfer images; 0 = off
        distil_epochs: Annotated[int, Ge(1)] = 1  # passes over the transfer images per round
        distil_batch: Annotated[int, Ge(1)] = 64  # transfer images per step, and as many of its own
        count_noise: Annotated[float, Ge(0)] = 0.0  # standard deviation of the noise on label counts; 0: exact counts
        restore_statistics: bool = True  # BatchNorm's, from its own data once it has learned from transfer images
        # The server's too
        trust: Literal["counts", "uniform"] = "counts"
        prior_free: bool = True
        smoothing: Annotated[float, Gt(0)] = 1.0

    def precompute(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        """The prior; in the second exchange also the transfer images and their targets, in the order of use."""
        per_sample: dict[str, Tensor] = {}
        if self.config.prior_free:
            prior_C = fusion.log_prior(site.label_counts(job.client), self.config.smoothing)
            per_sample["log_prior"] = prior_C.expand(len(y), -1)
        if job.payload.probe_logits is not None and job.payload.label_counts is not None:
            order = self._order(site, job, len(job.payload.probe_logits))[: len(y)]
            held = job.payload.label_counts.nonzero().flatten()
            per_sample["transfer"] = _transfer_images(site, job, order)
            per_sample["target"] = job.payload.probe_logits[order].index_select(1, held).softmax(1)
        return per_sample

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        prior = batch.per_sample.get("log_prior", 0.0)
        if "transfer" not in batch.per_sample:
            yield "ce", losses.cross_entropy(student(batch.x) + prior, batch.y)
            return
        held = job.payload.label_counts.nonzero().flatten()  # type: ignore[union-attr]
        # Labels that no client holds are left out: a target probability of 0 would also teach.
        yield (
            "distil",
            losses.kl(batch.per_sample["target"], student(batch.per_sample["transfer"]).index_select(1, held)),
        )
        if self.config.gamma:
            yield "own", self.config.gamma * losses.cross_entropy(student(batch.x) + prior, batch.y)

    def train(self, site: Site, job: Job) -> Outcome:
        if job.exchange:
            return self._distil(site, job)
        _check_agreement(site, job)
        return site.fit(self, job)

    def next_memory(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        """The prior, for evaluation, and the released counts: drawn once, as the mean of many draws reveals them."""
        if trained.memory or job.exchange:
            return trained.memory
        counts_C, memory = trained.site.label_counts(job.client), {}
        if self.config.prior_free:
            memory["log_prior"] = fusion.log_prior(counts_C, self.config.smoothing)
        return {**memory, "released": self._release(trained.site, job, counts_C)}

    def report(self, trained: Trained, job: Job) -> Payload:
        if job.exchange:
            return Payload()
        site, counts_C = trained.site, torch.zeros(trained.site.problem.classes, dtype=torch.int64)
        if _is_generated(job) or self.config.trust == "counts":
            counts_C = self.next_memory(trained, job)["released"]
        if _is_generated(job):
            entries = {name: entry[None] for name, entry in trained.student.weights.items()}
            return Payload(samples=entries, probe_logits=torch.zeros(0, len(counts_C)), label_counts=counts_C)
        x = _transfer_images(site, job, torch.arange(public_set.size(site.problem)))
        return Payload(samples={}, probe_logits=forward.logits(trained.student, x), label_counts=counts_C)

    def predictor(self, job: Job) -> Predictor:
        """With the prior on the client's own test split; without it elsewhere."""
        prior_C = job.state.memory.get("log_prior") if job.task == "evaluate" else None
        return SingleModel() if prior_C is None else PriorAdjusted(prior_C)

    def _distil(self, site: Site, job: Job) -> Outcome:
        student = site.student(job)
        optimiser = site.optimiser(job, student.learnable)
        numbers: Mapping[str, float] = {}
        if job.payload.probe_logits is not None:
            drawn = self._beside(site, job, len(job.payload.probe_logits))
            per_sample = self.precompute(site, job, drawn.x, drawn.y, drawn.position)
            student.train()
            batches = site.batches(self, job, drawn, per_sample)
            numbers = optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))
            if self.config.restore_statistics:
                restore_statistics(student, site.own(job.client)[0])
        return site.close(self, job, student, None, numbers, optimiser)

    def _beside(self, site: Site, job: Job, count: int) -> LocalBatches:
        """As many of the client's own samples as transfer images, in random passes and equal batches.

        Drawn from a separate stream: the second exchange does not change what the first one draws.
        """
        index, draws = site.train_index[job.client], self._stream(site, job, "own").torch()
        total = count * self.config.distil_epochs
        passes = [torch.randperm(len(index), generator=draws) for _ in range(-(-total // len(index)))]
        position = torch.cat(passes)[:total]
        sizes = tuple(map(len, torch.empty(count).split(self.config.distil_batch))) * self.config.distil_epochs
        return LocalBatches(*site.augmented(job, index[position]), position, sizes, job.state.epoch, job.state.position)

    def _order(self, site: Site, job: Job, count: int) -> Tensor:
        """The order of the transfer images, over all passes."""
        draws = self._stream(site, job, "transfer").torch()
        return torch.cat([torch.randperm(count, generator=draws) for _ in range(self.config.distil_epochs)])

    def _release(self, site: Site, job: Job, counts_C: Tensor) -> Tensor:
        """Counts with Gaussian noise, rounded, none negative. They are the same in every round of a run."""
        if not self.config.count_noise:
            return counts_C
        draws = seeds.stream(site.problem.seed, "released counts", client=job.client).torch()
        noise_C = self.config.count_noise * torch.randn(counts_C.shape, generator=draws, dtype=torch.float64)
        return (counts_C + noise_C).round().clamp(min=0).long()

    def _stream(self, site: Site, job: Job, purpose: str) -> seeds.Stream:
        return seeds.stream(site.problem.seed, "distil", round=job.round, client=job.client).child(purpose)


def restore_statistics(student: Student, x: Tensor) -> None:
    """Set BatchNorm's statistics to their mean over one pass of `x`, the limit of many passes; ends in eval mode."""
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if norms:
        momenta, seen = [norm.momentum for norm in norms], 0
        student.train()
        with torch.no_grad():
            for part in x.split(EVALUATION_BATCH):
                seen += len(part)
                for norm in norms:
                    norm.momentum = len(part) / seen
                student(part)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    student.eval()


def _transfer_images(site: Site, job: Job, index: Tensor) -> Tensor:
    """The images at `index` of the round's transfer set, scaled for a student."""
    if job.payload.samples:
        return image_generators.from_bytes(job.payload.samples["x"].index_select(0, index))
    return public_set.images(site.problem, index)


def _is_generated(job: Job) -> bool:
    """Whether the round's images are generated: the server names no public set."""
    return "checksum" not in (job.payload.numbers or {})


def _check_agreement(site: Site, job: Job) -> None:
    """Raises ValueError if client and server do not have the same images."""
    proxy = site.problem.proxy
    if _is_generated(job):
        if any(offset != -1 for offset in site.train.offset):
            raise ValueError("generated images are in [-1, 1], these data are not: use data.scaling=symmetric")
    elif proxy is None or float(proxy.checksum) != job.payload.number("checksum"):
        raise ValueError("the public set differs from the server's: its images, or their order")
