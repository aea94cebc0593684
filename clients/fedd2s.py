"""FedD2S (reconstruction), client half: a personal student that learns from a head on the federation's taps.

Source: Atapour et al., arXiv 2402.10846, of which only the abstract could be read; equations as reconstructed in
fedd2s.md 1.3 and 2.2. Server half: fedd2s.
"""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from fedkd import heads, losses, orders, seeds
from fedkd.client import Batch, Client, Trained
from fedkd.engine import Job
from fedkd.off import Off
from fedkd.orders import Order
from fedkd.payload import Payload, Weights
from fedkd.student import Student
from fedkd.training import EVALUATION_BATCH, Outcome, Site


class FedD2S(Client):
    sends = frozenset({"samples", "generator", "numbers"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        lambda_c: Annotated[float, Ge(0), Off("local training")] = 1.0  # weight of the divergence from received logits
        mu: Annotated[float, Ge(0)] = 1.0  # weight of cross entropy at the local head, once blocks are dropped; 0 = off
        dropped_blocks: Literal["train", "freeze"] = "train"  # blocks out of the federation: go on learning, or not
        ce_through: bool = True  # whether cross entropy of the whole student reaches the blocks that take part

    def train(self, site: Site, job: Job) -> Outcome:
        order = orders.read(job.payload.numbers)
        site = _without_held_out(site, job, order)
        student = site.student(job).train()
        if order.is_still:
            return site.close(self, job, student, None, {})
        job = _with_local_head(site, student, job, order)
        return site.fit(self, job, student, learnable=self._learnable(student, job, order))

    def consult(self, site: Site, job: Job, x: Tensor, y: Tensor, position: Tensor) -> Mapping[str, Tensor]:
        """The federation's logits of each sample drawn, by its place in the client's data, and whether it has any."""
        order = orders.read(job.payload.numbers)
        if not order.depth or not self.config.lambda_c:
            return {}
        if order.smoothing:
            sure = torch.eye(site.problem.classes)[y]
            return _all((1 - order.smoothing) * sure + order.smoothing / site.problem.classes)
        table = job.payload.samples
        if table is None:
            return {}
        if "labels" in table:
            key, rows = y, table["labels"].long()
        elif order.per_class:
            key, rows = y, site.train.y[site.train_index[job.client]][reported(site, job, order)].unique()
        else:
            key, rows = position, reported(site, job, order)
        if len(rows) != len(table["logits"]):
            raise ValueError(f"samples: {len(table['logits'])} rows of logits came, the client reported {len(rows)}")
        row, is_there = _find(rows, key)
        return {"teacher": table["logits"][row], "taught": is_there}

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        order = orders.read(job.payload.numbers)
        u, v, of_head = self._forward(student, batch.x, job, order)
        yield "ce", losses.cross_entropy(u, batch.y)
        if self.config.mu and of_head is not None:
            yield "head", self.config.mu * losses.cross_entropy(of_head, batch.y)
        if self.config.lambda_c and v is not None and "teacher" in batch.known:
            taught = batch.known["taught"]
            if bool(taught.any()):
                share = float(taught.sum()) / len(batch.y)
                teacher = batch.known["teacher"][taught]
                yield "kl", self.config.lambda_c * share * losses.softened_kl(teacher, v[taught], order.temperature)

    def remember(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        kept = job.state.memory.get("heads", {})
        detached = {tap: {name: entry.detach() for name, entry in entries.items()} for tap, entries in kept.items()}
        return {"heads": detached} if detached else {}

    def report(self, trained: Trained, job: Job) -> Payload:
        order = orders.read(job.payload.numbers)
        numbers = {"depth": float(order.depth)} if order.depth else {}
        if order.held_out and order.depth and len(trained.site.test_index[job.client]):
            numbers["held_out"] = trained.site.score(self, trained.student, job)
        samples = self._samples(trained.site, trained.student, job, order) if order.reports else {}
        head = (_local_head(trained.student, job, order) if order.reports else None) or {}
        told = {name: entry.detach() for name, entry in head.items() if not name.startswith("adapter.")}
        generator = told if order.head_up else None
        return Payload(samples=samples, numbers=numbers, generator=generator)

    def _learnable(self, student: Student, job: Job, order: Order) -> Mapping[str, Tensor]:
        """The student's parameters, less those that are frozen, and those of the local head in use."""
        learnable: dict[str, Tensor] = dict(student.learnable)
        if order.depth and self.config.dropped_blocks == "freeze":
            for name in heads.of_dropped(student, order.depth):
                learnable.pop(name, None)
        head = _local_head(student, job, order) or {}
        tap = heads.tap(student, order.depth)
        return learnable | {f"local.{tap}.{n}": entry for n, entry in head.items() if not heads.is_statistic(n)}

    def _forward(
        self, student: Student, x: Tensor, job: Job, order: Order
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """u, the logits of the whole student; v, those that learn from the federation; those of a head beside it.

        Where nothing is dropped v is u, and a head is there for its adapter's sake alone: no block feels it.
        """
        depth, name = order.depth, heads.tap(student, order.depth)
        if not 1 <= depth < len(student):
            u, found = student.taps(x, [name] if depth and order.adapter else [])
            of_head = _federated(student, found[name].detach(), job, order) if found else None
            return u, u if depth else None, of_head
        if self.config.ce_through:
            u, found = student.taps(x, [name])
            tap = found[name]
        else:
            tap = heads.through(student, x, 0, depth)
            u = heads.through(student, tap.detach(), depth, len(student))
        v = _federated(student, tap, job, order)
        return u, v, None if orders.STUDENTS[order.student] == "through" else v

    @torch.no_grad()
    def _samples(self, site: Site, student: Student, job: Job, order: Order) -> Weights:
        """Taps (n, ...), logits (n, C) and labels (n,) of the client's own samples in stored order, or class means."""
        index = site.train_index[job.client][reported(site, job, order)]
        x, y = site.train.take(index)
        student.eval()
        # One that reports before it trains may have no adapter yet.
        adapter = _local_head(student, job, order) or (_new_head(site, student, job, order) if order.adapter else {})
        name, kept, said = heads.tap(student, order.depth), [], []
        for part in x.split(EVALUATION_BATCH):
            u, found = student.taps(part, [name])
            v = _federated(student, found[name], job, order) if order.depth < len(student) else None
            tap = heads.pooled(found[name], order.pool)
            kept.append(heads.adapted(adapter, tap) if order.adapter else tap)
            said.append(u if v is None else v)
        taps, logits = torch.cat(kept), torch.cat(said)
        small = torch.uint8 if site.problem.classes <= 256 else torch.int64
        if not order.per_class:
            return {"taps": _covered(site, job, order, taps), "logits": logits, "labels": y.to(small)}
        labels, counts = y.unique(return_counts=True)
        taps = _covered(site, job, order, heads.by_class(taps, y, labels))
        means = {"taps": taps, "logits": heads.by_class(logits, y, labels)}
        return means | {"labels": labels.to(small), "counts": counts}


def reported(site: Site, job: Job, order: Order) -> Tensor:
    """The places (n,) in a client's data of the samples that it reports, ascending and in every round the same."""
    size = len(site.train_index[job.client])
    if not order.max_samples or order.max_samples >= size:
        return torch.arange(size)
    stream = seeds.stream(site.problem.seed, "reported", client=job.client)
    return torch.randperm(size, generator=stream.torch())[: order.max_samples].sort().values


def _covered(site: Site, job: Job, order: Order, taps: Tensor) -> Tensor:
    """Taps as they leave the client: with Gaussian noise and in half precision, where these are asked for."""
    if order.noise:
        stream = seeds.stream(site.problem.seed, "tap noise", round=job.round, client=job.client).child(job.exchange)
        draw = torch.Generator().manual_seed(secrets.randbits(63)) if site.is_device else stream.torch()
        scale = order.noise * taps.square().mean().sqrt()
        taps = taps + scale * torch.randn(taps.shape, generator=draw)
    return taps.half() if order.is_half else taps


def _federated(student: Student, tap: Tensor, job: Job, order: Order) -> Tensor | None:
    """Logits of the local head on a tap, of the server's, or of the dropped blocks held constant."""
    is_training = student.training
    if orders.STUDENTS[order.student] == "through":
        constant = {name: entry.detach().clone() for name, entry in heads.of_dropped(student, order.depth).items()}
        return heads.logits(student, order.depth, "tail", constant, tap, training=is_training)
    tap, kind = heads.pooled(tap, order.pool), heads.KINDS[order.head]
    if orders.STUDENTS[order.student] == "global_head":
        given = job.payload.generator
        return heads.logits(student, order.depth, kind, given, tap, training=False) if given else None
    if (entries := _local_head(student, job, order)) is None:
        return None
    tap = heads.adapted(entries, tap) if order.adapter else tap
    return heads.logits(student, order.depth, kind, entries, tap, training=is_training)


def _has_local_head(student: Student, order: Order) -> bool:
    """Whether a local head is in use: once blocks are dropped; behind an adapter, which must learn, before that too."""
    deepest = len(student) if order.adapter else len(student) - 1
    return 1 <= order.depth <= deepest and orders.STUDENTS[order.student] == "local_head"


def _local_head(student: Student, job: Job, order: Order) -> Weights | None:
    """The entries of the local head in use, if there is one; an adapter's are among them."""
    if not _has_local_head(student, order):
        return None
    found: Weights | None = job.state.memory.get("heads", {}).get(heads.tap(student, order.depth))
    return found


def _with_local_head(site: Site, student: Student, job: Job, order: Order) -> Job:
    """The job with a local head for its depth in memory, which training may change: a copy, or a new one.

    It comes from a stream of its own, so that runs that differ in the schedule alone draw the same batches.
    """
    if not _has_local_head(student, order):
        return job
    tap, known = heads.tap(student, order.depth), job.state.memory.get("heads", {})
    entries = known.get(tap) or _new_head(site, student, job, order)
    live = {n: e.detach().clone().requires_grad_(not heads.is_statistic(n)) for n, e in entries.items()}
    memory = {**job.state.memory, "heads": {**known, tap: live}}
    return replace(job, state=replace(job.state, memory=memory))


def _new_head(site: Site, student: Student, job: Job, order: Order) -> Weights:
    if order.is_copy:
        return heads.of_dropped(student, order.depth)
    problem, tap = site.problem.of(job.client), heads.tap(student, order.depth)
    whose = 0 if site.problem.common_init else job.client
    stream = seeds.stream(problem.seed, "local head", client=whose)
    own = stream.child(site.problem.architecture(job.client), tap)
    shape = heads.shapes(problem, order.pool)[tap]
    if not order.adapter:
        return heads.build(problem, order.depth, heads.KINDS[order.head], shape, own).weights
    # Heads behind adapters begin alike in all architectures, so that adapters learn to speak to the same head.
    head = heads.build(problem, order.depth, "flat", (order.adapter,), stream.child("adapter"))
    return {**heads.adapter(shape, order.adapter, own.child("adapter")), **head.weights}


def _without_held_out(site: Site, job: Job, order: Order) -> Site:
    """The site of a client that keeps a tenth of its training data back, as its test split; else the site itself."""
    if not order.held_out:
        return site
    index = site.train_index[job.client]
    stream = seeds.stream(site.problem.seed, "held out", client=job.client)
    shuffled = torch.randperm(len(index), generator=stream.torch())
    size = order.held(len(index))
    held, left = (index[part.sort().values] for part in (shuffled[:size], shuffled[size:]))
    return replace(site, test=site.train, train_index={job.client: left}, test_index={job.client: held})


def _all(probs: Tensor) -> Mapping[str, Tensor]:
    """A teacher of every sample, as logits."""
    return {"teacher": probs.log(), "taught": torch.ones(len(probs), dtype=torch.bool)}


def _find(rows: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """For each key its place in ascending `rows`, and whether it is there."""
    row = torch.searchsorted(rows, key).clamp(max=len(rows) - 1)
    return row, rows[row] == key
