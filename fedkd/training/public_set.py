"""Public: what both ends do with a public set of images: agree on a round's part of it, and pass over it in batches.

N images of the part. Nobody sends indices: each end derives them from (seed, round), and the server sends a checksum.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedkd import seeds
from fedkd.data.samples import Proxy
from fedkd.participation import Batch
from fedkd.payload import Numbers
from fedkd.problem import Problem
from fedkd.seeds import Stream


def required(problem: Problem) -> Proxy:
    """The public set of a problem. Assembling a run has refused one without where an algorithm needs it."""
    if problem.proxy is None:
        raise ValueError("there is no public set")
    return problem.proxy


def size(problem: Problem, most: int | None = None) -> int:
    """How many images a round's part has: `most`, if there are as many; else, or without a bound, all."""
    count = len(required(problem))
    return count if most is None else min(most, count)


def images(problem: Problem, index: Tensor | None = None) -> Tensor:
    """Images (N, channels, height, width), scaled: all in their order, or those at `index` (N,) int64."""
    samples = required(problem).samples
    return samples.take(torch.arange(len(samples)) if index is None else index)[0]


def labels(problem: Problem, index: Tensor | None = None) -> Tensor | None:
    """True labels (N,) of the same, by which knowledge is measured; None if the set has no labels of the task."""
    proxy = required(problem)
    if not proxy.is_labelled:
        return None
    return proxy.samples.y if index is None else proxy.samples.y[index]


def part(problem: Problem, size: int, round: int) -> Tensor:
    """The images (N,) int64 of one round, ascending: `size` of them, as many of each label as there are labels.

    Without labels all count as one; what is odd, or missing of a rare label, goes to random others.
    """
    y = required(problem).samples.y
    order = torch.randperm(len(y), generator=seeds.stream(problem.seed, "public", round=round).torch())
    _, label = torch.unique(y[order], return_inverse=True)
    earlier = torch.nn.functional.one_hot(label).cumsum(0).gather(1, label[:, None])[:, 0]  # of the same label
    return order[earlier.argsort(stable=True)[:size]].sort().values


def describe(problem: Problem, size: int) -> Numbers:
    """What the server tells of the public set and of a round's part of it."""
    return {"checksum": float(required(problem).checksum), "samples": float(size)}


def look(problem: Problem, numbers: Numbers | None, round: int) -> Tensor:
    """The images (N, channels, height, width), scaled, that the server means. Raises ValueError if it has others."""
    proxy, numbers = required(problem), numbers or {}
    if numbers.get("checksum") != float(proxy.checksum):
        raise ValueError(f"the server's public set is not this one: checksum {numbers.get('checksum')}")
    return images(problem, part(problem, int(numbers["samples"]), round))


def batches(
    x: Tensor, per_sample: Mapping[str, Tensor], size: int, stream: Stream, *, epochs: int = 0, steps: int | None = None
) -> Iterator[Batch]:
    """Shuffled passes over images and what is known of each: so many epochs, or steps. Labels are -1: there are none.

    A pass ends with a short batch.
    """
    generator = stream.torch()
    total = epochs * -(-len(x) // size) if steps is None else steps
    order = torch.empty(0, dtype=torch.int64)
    for step in range(total):
        if not len(order):
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:size], order[size:]
        its = {name: value[rows] for name, value in per_sample.items()}
        yield Batch(x[rows], torch.full((len(rows),), -1), step, size, per_sample=its)
