"""FedD2S (reconstruction), client half: a personal student that learns from a head on the federation's taps.

Source: Atapour et al., arXiv 2402.10846, of which only the abstract could be read;
docs/strategies/fedd2s.md, equations 1 and 2. Server half: fedd2s.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from fedkd import seeds
from fedkd.client import Client
from fedkd.distillation import heads
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Outcome, Site, Trained
from fedkd.payload import Payload, Weights
from fedkd.student import Student
from fedkd.training.forward import EVALUATION_BATCH


@dataclass(frozen=True)
class ClientInstructions:
    """A client's instructions for the round, and the head in use."""

    depth: int  # m: blocks that take part; 0: none
    is_whole: bool  # no block is dropped
    tap: str  # the block whose output is used
    has_own: bool  # the head is the client's own
    head: Weights | None  # its entries; None before there is one


class FedD2S(Client):
    sends = frozenset({"samples", "generator", "numbers"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        lambda_c: Annotated[float, Ge(0), Off("local training")] = 1.0  # weight of the divergence from received logits
        mu: Annotated[float, Ge(0)] = 1.0  # weight of cross entropy at the local head, once blocks are dropped; 0 = off
        # The server's too
        knowledge: Literal["per_sample", "per_class", "smoothing"] = "per_sample"
        epsilon: Annotated[float, Gt(0), Lt(1)] = 0.1
        student: Literal["local_head", "global_head"] = "local_head"
        head_arch: Literal["tail", "flat"] = "tail"
        head_up: bool = False
        exchange: Literal["fused", "two_step"] = "fused"
        hetero: Literal["group", "adapter"] = "group"
        tap_pool: Annotated[int, Ge(0)] = 0
        temperature: Annotated[float, Gt(0)] = 3.0

    def train(self, site: Site, job: Job) -> Outcome:
        student = site.student(job).train()
        if self.config.exchange == "two_step" and not job.exchange:  # it only reports; it learns in the second exchange
            return site.close(self, job, student, None, {})
        job, head = self._with_local_head(site, student, job)
        return site.fit(self, job, student, learnable={**student.learnable, **head})

    def precompute(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        """The federation's logits (S, C) for the drawn samples, found by place in the client's data or by label."""
        if not _depth(job) or not self.config.lambda_c:
            return {}
        if self.config.knowledge == "smoothing":
            epsilon, classes = self.config.epsilon, site.problem.classes
            return {"teacher": ((1 - epsilon) * torch.eye(classes)[y] + epsilon / classes).log()}
        if job.payload.samples is None:
            return {}
        logits, rows, expected = job.payload.samples["logits"], position, len(site.train_index[job.client])
        if self.config.knowledge == "per_class":
            labels = site.label_counts(job.client).nonzero().flatten()
            rows, expected = torch.searchsorted(labels, y), len(labels)
        if len(logits) != expected:
            raise ValueError(f"samples: {len(logits)} rows of logits came, the client reported {expected}")
        return {"teacher": logits[rows]}

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        """Terms on u, the whole student's logits, on the head's logits, and on v, which learns from the federation.

        Once blocks are dropped, v is the head's logits. With no dropped block v = u; the head only trains its adapter,
        on a detached input.
        """
        instructions = self._instructions(student, job)
        u, taps = student.taps(batch.x, [] if instructions.head is None else [instructions.tap])
        v = u if instructions.is_whole else None
        yield "ce", losses.cross_entropy(u, batch.y)
        if instructions.head is not None:
            tap = taps[instructions.tap].detach() if instructions.is_whole else taps[instructions.tap]
            of_head = self._logits(student, instructions, tap)
            v = v if instructions.is_whole else of_head
            if self.config.mu:
                yield "head", self.config.mu * losses.cross_entropy(of_head, batch.y)
        if v is not None and "teacher" in batch.per_sample:
            kl = losses.softened_kl(batch.per_sample["teacher"], v, self.config.temperature)
            yield "kl", self.config.lambda_c * kl

    def next_memory(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        kept = job.state.memory.get("heads", {})
        detached = {tap: {name: entry.detach() for name, entry in entries.items()} for tap, entries in kept.items()}
        return {"heads": detached} if detached else {}

    def report(self, trained: Trained, job: Job) -> Payload:
        instructions = self._instructions(trained.student, job)
        samples: Weights = {}
        head: Weights = {}
        if instructions.depth and not job.exchange and self.config.knowledge != "smoothing":
            samples = self._samples(trained.site, trained.student, job, instructions)
            own = instructions.head if instructions.has_own and instructions.head is not None else {}
            head = {name: entry.detach() for name, entry in own.items() if not name.startswith("adapter.")}
        numbers = {"depth": float(instructions.depth)} if instructions.depth else {}
        return Payload(samples=samples, numbers=numbers, generator=head if self.config.head_up else None)

    def _instructions(self, student: Student, job: Job) -> ClientInstructions:
        depth, blocks = _depth(job), len(student)
        tap = heads.tap(student, depth)
        if self.config.student == "global_head":
            return ClientInstructions(depth, depth == blocks, tap, False, job.payload.generator)
        # An adapter must learn, so it has a head behind it even before a block is dropped.
        has_own = 1 <= depth < blocks or (depth == blocks and self.config.hetero == "adapter")
        head = job.state.memory.get("heads", {}).get(tap) if has_own else None
        return ClientInstructions(depth, depth == blocks, tap, has_own, head)

    def _with_local_head(self, site: Site, student: Student, job: Job) -> tuple[Job, Weights]:
        """The job with a trainable copy of its local head, or a new one in memory, and the head's learnable entries."""
        instructions = self._instructions(student, job)
        if not instructions.has_own:
            return job, {}
        entries = instructions.head or self._new_head(site, job, instructions)
        live = heads.trainable(entries)
        memory = {**job.state.memory, "heads": {**job.state.memory.get("heads", {}), instructions.tap: live}}
        learnable = {f"local.{instructions.tap}.{name}": entry for name, entry in live.items() if entry.requires_grad}
        return replace(job, state=replace(job.state, memory=memory)), learnable

    def _new_head(self, site: Site, job: Job, instructions: ClientInstructions) -> Weights:
        """A fresh local head, from its own stream: runs that differ only in the schedule draw the same batches."""
        problem, owner = site.problem.of(job.client), 0 if site.problem.common_init else job.client
        stream = seeds.stream(problem.seed, "local head", client=owner)
        own = stream.child(site.problem.architecture(job.client), instructions.tap)
        shape = heads.shapes(problem, self.config.tap_pool)[instructions.tap]
        if self.config.hetero == "group":
            return heads.build(problem, instructions.depth, self.config.head_arch, shape, own).weights
        # Heads behind adapters start equal in all architectures, so that all adapters learn to feed the same head.
        head = heads.build(problem, instructions.depth, "flat", (heads.ADAPTED,), stream.child("adapter"))
        return {**heads.adapter(shape, own.child("adapter")), **head.weights}

    def _logits(self, student: Student, instructions: ClientInstructions, tap: Tensor) -> Tensor:
        """Logits of the head in use on a tap; the server's head stays in eval mode."""
        assert instructions.head is not None
        kind, side, is_training = self.config.head_arch, self.config.tap_pool, student.training and instructions.has_own
        return heads.logits(student, instructions.depth, kind, instructions.head, tap, side=side, training=is_training)

    @torch.no_grad()
    def _samples(self, site: Site, student: Student, job: Job, instructions: ClientInstructions) -> Weights:
        """Taps (n, ...), logits (n, C) and labels (n,) of the client's own samples in stored order, or class means."""
        x, y = site.own(job.client)
        student.eval()
        # A client that reports before it trains may have no adapter yet.
        is_new = instructions.head is None and self.config.hetero == "adapter"
        head = self._new_head(site, job, instructions) if is_new else instructions.head
        taps, logits = [], []
        for part in x.split(EVALUATION_BATCH):
            u, outputs = student.taps(part, [instructions.tap])
            taps.append(heads.features(outputs[instructions.tap], self.config.tap_pool, head))
            is_own = instructions.is_whole or instructions.head is None
            logits.append(u if is_own else self._logits(student, instructions, outputs[instructions.tap]))
        rows = {"taps": torch.cat(taps), "logits": torch.cat(logits)}
        small = torch.uint8 if site.problem.classes <= 256 else torch.int64
        if self.config.knowledge != "per_class":
            return {**rows, "labels": y.to(small)}
        labels, counts = y.unique(return_counts=True)
        means = {name: heads.by_class(values, y, labels) for name, values in rows.items()}
        return {**means, "labels": labels.to(small), "counts": counts}


def _depth(job: Job) -> int:
    """m of the round, as the server sends it; 0: no block takes part."""
    return int((job.payload.numbers or {}).get("depth", 0))
