"""Heads on taps: they turn the output of a block into logits, at a client and at a server.

A tap of depth j is the output of block j; its head is a separate student, whose last block is called `head` too:
`tail` is a second copy of blocks j+1..L, `flat` one linear layer on the flattened tap. An adapter before a `flat` head
maps taps of any shape to one width, so that students of all architectures can share a head.
Suffixes: N samples, B of a batch, C classes, P labels that occur.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd import student as students
from fedkd.errors import ConfigError
from fedkd.payload import Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.student import Student
from fedkd.training.optimisers import Sgd

ADAPTED = 128  # width of an adapter's output


@dataclass(frozen=True)
class HeadDataset:
    """A head's training data: taps (N, ...), the clients' logits (N, C), labels (N,) int64, weights (N,) of mean 1."""

    taps: Tensor
    logits: Tensor
    y: Tensor
    weight: Tensor

    def take(self, rows: Tensor) -> "HeadDataset":
        return HeadDataset(self.taps[rows], self.logits[rows], self.y[rows], self.weight[rows])


def tap(student: Student, depth: int) -> str:
    """The block whose output is used at a depth: block m, or the last before the head."""
    blocks = list(student.blocks)
    return blocks[min(depth, len(blocks) - 1) - 1]


def features(tap: Tensor, side: int, entries: Weights | None = None) -> Tensor:
    """A head's input from a tap (B, ...): pooled to side x side fields, then mapped by the adapter in `entries`.

    A side of 0, or a tap without spatial axes, skips the pooling; entries without an adapter skip the mapping.
    """
    pooled = F.adaptive_avg_pool2d(tap, side) if side and tap.dim() == 4 else tap
    if entries is None or "adapter.weight" not in entries:
        return pooled
    return F.linear(pooled.flatten(1), entries["adapter.weight"], entries["adapter.bias"])


def shapes(problem: Problem, side: int = 0) -> dict[str, tuple[int, ...]]:
    """Shape of one sample's output of each block before the head, by a dry run; the students must be alike."""
    student = problem.initial().eval()
    blocks = list(student.blocks)
    with torch.no_grad():
        _, outputs = student.taps(problem.blank(1), blocks[:-1])
    return {name: tuple(features(value, side).shape[1:]) for name, value in outputs.items()}


def check_tail(problem: Problem) -> None:
    """Raises ConfigError if the student is not its blocks one after the other: then it has no tail to replace."""
    student, x = problem.initial().eval(), problem.blank(2)
    logits = student(x)
    try:
        for block in student.blocks.values():
            x = block(x)
        is_chain = x.shape == logits.shape and torch.allclose(x, logits, rtol=1e-4, atol=1e-5)
    except (RuntimeError, TypeError):
        is_chain = False
    if not is_chain:
        what = "the student's forward does more than run its blocks one after the other, so it has no tail to train"
        raise ConfigError(
            what, where="strategy.head_arch", mend="say strategy.head_arch=flat: heads of one linear layer"
        )


def make(problem: Problem, depth: int, kind: str, shape: Sequence[int]) -> Student:
    """A head without entries, on the meta device, for one architecture's tap at `depth`, of `shape` per sample."""
    blocks = list(problem.shape.blocks.items())
    if kind == "tail":
        tail = blocks[min(depth, len(blocks) - 1) :]
        return Student(OrderedDict((name, copy.deepcopy(block)) for name, block in tail))
    head = nn.Linear(torch.Size(shape).numel(), problem.classes, device="meta")
    return Student(OrderedDict(flatten=nn.Flatten(), head=head))


def build(problem: Problem, depth: int, kind: str, shape: Sequence[int], stream: Stream) -> Student:
    """`make` with initial entries from `stream`."""
    return students.build(partial(make, problem, depth, kind, shape), stream)


def adapter(shape: Sequence[int], stream: Stream) -> Weights:
    """Initial entries of a linear layer from a tap of `shape` per sample to the common width, drawn from `stream`."""
    size = torch.Size(shape).numel()
    built = students.build(lambda: Student(OrderedDict(head=nn.Linear(size, ADAPTED, device="meta"))), stream)
    return {name.replace("head.", "adapter."): entry for name, entry in built.weights.items()}


def logits(
    student: Student, depth: int, kind: str, entries: Weights, tap: Tensor, *, side: int = 0, training: bool
) -> Tensor:
    """Logits (B, C) of the head with these entries on a tap; only the structure of `student`'s blocks matters."""
    x = features(tap, side, entries)
    if kind == "flat":
        return F.linear(x.flatten(1), entries["head.weight"], entries["head.bias"])
    blocks = list(student.blocks.items())
    rest = nn.Sequential(OrderedDict(blocks[min(depth, len(blocks) - 1) :]))
    before = student.training
    rest.train(training)
    try:
        return cast(Tensor, torch.func.functional_call(rest, dict(entries), (x,)))
    finally:
        rest.train(before)


def trainable(entries: Weights) -> dict[str, Tensor]:
    """A trainable copy of a head's entries; BatchNorm's statistics take no gradient."""
    return {n: e.detach().clone().requires_grad_(".running_" not in n) for n, e in entries.items()}


def terms(data: HeadDataset, logits: Tensor, temperature: float, weight: float) -> Iterator[tuple[str, Tensor]]:
    """A head's loss: docs/strategies/fedd2s.md, equation 3."""
    yield "ce", (data.weight * F.cross_entropy(logits, data.y, reduction="none")).mean()
    if weight:
        target = (data.logits / temperature).softmax(1)
        kl_B = F.kl_div((logits / temperature).log_softmax(1), target, reduction="none").sum(1)
        yield "kl", weight * temperature**2 * (data.weight * kl_B).mean()


def teach(
    head: Student,
    data: HeadDataset,
    sgd: Sgd,
    stream: Stream,
    epochs: int,
    batch: int,
    temperature: float,
    weight: float,
) -> Mapping[str, float]:
    """Train a head in place, in passes over the shuffled data; `sgd` holds its parameters. Returns mean terms.

    `weight` is that of the clients' logits. A head with BatchNorm skips a last batch of a single sample.
    """
    shuffles, least = stream.torch(), 2 if head.statistics else 1
    seen: dict[str, list[Tensor]] = {}
    head.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data.y), generator=shuffles).split(batch):
            if len(rows) < least:
                continue
            part = data.take(rows)
            losses = dict(terms(part, head(part.taps), temperature, weight))
            sgd.step(torch.autograd.grad(torch.stack(list(losses.values())).sum(), sgd.parameters))
            for name, value in losses.items():
                seen.setdefault(name, []).append(value.detach())
    return {name: float(torch.stack(values).mean()) for name, values in seen.items()}


def by_class(values: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """Means (P, ...) of values (N, ...) over the samples of each of the labels (P,), which must all occur in y (N,)."""
    member_PN = (y == labels[:, None]).to(values.dtype)
    mean = (member_PN / member_PN.sum(1, keepdim=True)) @ values.flatten(1)
    return mean.view(len(labels), *values.shape[1:])
