"""Heads on taps: what turns the output of a block into logits, at a client and at a server (fedd2s.md 2.4).

A tap of depth j is the output of block j; a head there is a student of its own, whose last block is called `head` too:
`tail` a second copy of blocks j+1..L, the others one linear layer on the flattened tap (`flat`), on its average over
space (`gap`) or on its average over 4 x 4 fields (`pool4`); on a tap without space these three are the same. An adapter
before a `flat` head brings taps of any shape to one width, so that students of all architectures can share a head.
Suffixes: N samples, B of a batch, C classes.
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
from fedkd.optimisers import Sgd, clipped
from fedkd.payload import Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.student import Student

KINDS = ("tail", "flat", "gap", "pool4")
_SIDES = {"gap": 1, "pool4": 4}  # of what is left of a map


@dataclass(frozen=True)
class Lesson:
    """What a head is taught: taps (N, ...), the clients' logits (N, C), labels (N,) int64, weights (N,) of mean 1."""

    taps: Tensor
    logits: Tensor
    y: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> "Lesson":
        return Lesson(self.taps[rows], self.logits[rows], self.y[rows], self.weight[rows])


def names(student: Student) -> list[str]:
    """Names of all blocks, shallow to deep."""
    return [name for name, _ in student.named_children()]


def tap(student: Student, depth: int) -> str:
    """The block whose output is used at a depth: block m, or the last before the head."""
    blocks = names(student)
    return blocks[min(depth, len(blocks) - 1) - 1]


def through(student: Student, x: Tensor, start: int, stop: int) -> Tensor:
    """The output of blocks start+1..stop."""
    for _, block in list(student.named_children())[start:stop]:
        x = block(x)
    return x


def pooled(tap: Tensor, side: int) -> Tensor:
    """A tap averaged over side x side fields; as it is if side is 0 or if it has no space."""
    return F.adaptive_avg_pool2d(tap, side) if side and tap.dim() == 4 else tap


def shapes(problem: Problem, side: int = 0) -> dict[str, tuple[int, ...]]:
    """Shape of one sample's output of each block before the head, by a dry run; the students must be alike."""
    student = problem.initial().eval()
    with torch.no_grad():
        _, found = student.taps(torch.zeros(1, *problem.input_shape), names(student)[:-1])
    return {name: tuple(pooled(value, side).shape[1:]) for name, value in found.items()}


def make(problem: Problem, depth: int, kind: str, shape: Sequence[int]) -> Student:
    """A head without entries, on the meta device, for the tap at `depth` of one architecture, of `shape` a sample."""
    blocks = list(problem.shape.named_children())
    if kind == "tail":
        return Student(
            OrderedDict((name, copy.deepcopy(block)) for name, block in blocks[min(depth, len(blocks) - 1) :])
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = torch.Size(shape).numel()
    if len(shape) == 3 and kind in _SIDES:
        layers["pool"] = nn.AdaptiveAvgPool2d(_SIDES[kind])
        width = shape[0] * _SIDES[kind] ** 2
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(width, problem.classes, device="meta")
    return Student(layers)


def build(problem: Problem, depth: int, kind: str, shape: Sequence[int], stream: Stream) -> Student:
    """The same with initial entries from `stream`."""
    return students.build(partial(make, problem, depth, kind, shape), stream)


def adapter(shape: Sequence[int], width: int, stream: Stream) -> Weights:
    """Initial entries of a linear layer from a tap of `shape` a sample to `width` values, drawn from `stream`."""
    size = torch.Size(shape).numel()
    built = students.build(lambda: Student(OrderedDict(head=nn.Linear(size, width, device="meta"))), stream)
    return {name.replace("head.", "adapter."): entry for name, entry in built.weights.items()}


def adapted(entries: Weights, tap: Tensor) -> Tensor:
    """A tap (B, ...) brought to the common width (B, d) by the adapter among these entries."""
    return F.linear(tap.flatten(1), entries["adapter.weight"], entries["adapter.bias"])


def logits(student: Student, depth: int, kind: str, entries: Weights, tap: Tensor, *, training: bool) -> Tensor:
    """Logits (B, C) of the head with these entries on a tap; of `student` only the make of its blocks counts."""
    if kind != "tail":
        shrunk = pooled(tap, _SIDES.get(kind, 0))
        return F.linear(shrunk.flatten(1), entries["head.weight"], entries["head.bias"])
    blocks = list(student.named_children())
    rest = nn.Sequential(OrderedDict(blocks[min(depth, len(blocks) - 1) :]))
    before = student.training
    rest.train(training)
    try:
        return cast(Tensor, torch.func.functional_call(rest, dict(entries), (tap,)))
    finally:
        rest.train(before)


def of_dropped(student: Student, depth: int) -> Weights:
    """The student's own entries of the blocks beyond `depth`, as they are: no copies."""
    dropped = tuple(f"{name}." for name in names(student)[depth:])
    return {name: entry for name, entry in student.entries.items() if name.startswith(dropped)}


def is_statistic(name: str) -> bool:
    """Whether an entry is a BatchNorm statistic: no gradient reaches it."""
    return ".running_" in name


def terms(lesson: Lesson, logits: Tensor, temperature: float, weight: float) -> Iterator[tuple[str, Tensor]]:
    """CE(G(H), y) and weight T^2 KL(softmax(Z / T) || softmax(G(H) / T)): what a head minimises (fedd2s.md 2.3)."""
    yield "ce", (lesson.weight * F.cross_entropy(logits, lesson.y, reduction="none")).mean()
    if weight:
        target = (lesson.logits / temperature).softmax(1)
        each = F.kl_div((logits / temperature).log_softmax(1), target, reduction="none").sum(1)
        yield "kl", weight * temperature**2 * (lesson.weight * each).mean()


@dataclass(frozen=True)
class Teaching:
    """How a head is taught."""

    epochs: int
    batch: int  # samples
    temperature: float
    weight: float  # of the clients' logits beside the labels
    clip: float | None = None  # largest norm of a step's gradient


def teach(head: Student, lesson: Lesson, sgd: Sgd, how: Teaching, stream: Stream) -> Mapping[str, float]:
    """Passes over the shuffled lesson, in place; `sgd` holds the head's parameters. Gives the means of its terms.

    A last batch of a single sample is left out if the head has BatchNorm.
    """
    shuffles, least = stream.torch(), 2 if head.statistics else 1
    seen: dict[str, list[Tensor]] = {}
    head.train()
    for _ in range(how.epochs):
        for rows in torch.randperm(len(lesson), generator=shuffles).split(how.batch):
            if len(rows) < least:
                continue
            part = lesson.take(rows)
            found = dict(terms(part, head(part.taps), how.temperature, how.weight))
            gradients = torch.autograd.grad(torch.stack(list(found.values())).sum(), sgd.parameters)
            sgd.step(gradients if how.clip is None else clipped(gradients, how.clip))
            for name, value in found.items():
                seen.setdefault(name, []).append(value.detach())
    return {name: float(torch.stack(values).mean()) for name, values in seen.items()}


def is_finite(entries: Weights) -> bool:
    """Whether all entries are."""
    return all(bool(torch.isfinite(entry).all()) for entry in entries.values())


def by_class(values: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """Means (P, ...) of values (N, ...) over the samples of each of the labels (P,), which must all occur in y (N,)."""
    member_PN = (y == labels[:, None]).to(values.dtype)
    mean = (member_PN / member_PN.sum(1, keepdim=True)) @ values.flatten(1)
    return mean.view(len(labels), *values.shape[1:])


def mean(given: Sequence[Weights], sizes: Sequence[int]) -> Weights:
    """Mean of heads with the same entries by the size of their owners' data, summed in float64 in the order given."""
    shares = torch.tensor([size / sum(sizes) for size in sizes], dtype=torch.float64)
    stacked = {name: torch.stack([head[name] for head in given]) for name in given[0]}
    return {name: torch.tensordot(shares, each.double(), 1).to(each.dtype) for name, each in stacked.items()}
