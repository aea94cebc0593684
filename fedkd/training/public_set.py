"""A public set of samples at both ends: agreeing on a round's part of it, and passing over it in batches.

N images of the part. No indices cross: each end derives them from (seed, round), and the server sends a checksum.
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
    """The public set of a problem. Assembly refuses a run whose algorithm needs a public set and has none."""
    if problem.proxy is None:
        raise ValueError("there is no public set")
    return problem.proxy


def size(problem: Problem, most: int | None = None) -> int:
    """How many images a round's part has: at most `most`; all without that bound."""
    count = len(required(problem))
    return count if most is None else min(most, count)


def images(problem: Problem, index: Tensor | None = None) -> Tensor:
    """Images (N, channels, height, width), scaled: all in their order, or those at `index` (N,) int64."""
    samples = required(problem).samples
    return samples.take(torch.arange(len(samples)) if index is None else index)[0]


def labels(problem: Problem, index: Tensor | None = None) -> Tensor | None:
    """True labels (N,) of these images, for measures; None if the set has no labels of the task."""
    proxy = required(problem)
    if not proxy.is_labelled:
        return None
    return proxy.samples.y if index is None else proxy.samples.y[index]


def part(problem: Problem, size: int, round: int) -> Tensor:
    """The indices (N,) int64 of one round's `size` images, ascending, with equally many of each label.

    Without labels all images count as one label. Remainders and shortfalls of rare labels are filled at random.
    """
    y = required(problem).samples.y
    order = torch.randperm(len(y), generator=seeds.stream(problem.seed, "public", round=round).torch())
    _, label = torch.unique(y[order], return_inverse=True)
    earlier = torch.nn.functional.one_hot(label).cumsum(0).gather(1, label[:, None])[:, 0]  # of the same label
    return order[earlier.argsort(stable=True)[:size]].sort().values


def describe(problem: Problem, size: int) -> Numbers:
    """The server's description of the public set and of a round's part of it."""
    return {"checksum": float(required(problem).checksum), "samples": float(size)}


def agreed_images(problem: Problem, numbers: Numbers | None, round: int) -> Tensor:
    """The round's images (N, channels, height, width), scaled. Raises ValueError if the server's set differs."""
    proxy, numbers = required(problem), numbers or {}
    if numbers.get("checksum") != float(proxy.checksum):
        raise ValueError(f"the server's public set is not this one: checksum {numbers.get('checksum')}")
    return images(problem, part(problem, int(numbers["samples"]), round))


def batches(
    x: Tensor, per_sample: Mapping[str, Tensor], size: int, stream: Stream, *, epochs: int = 0, steps: int | None = None
) -> Iterator[Batch]:
    """Shuffled passes over images and their rows of `per_sample`; a pass ends with a short batch. All labels are -1."""
    generator = stream.torch()
    total = epochs * -(-len(x) // size) if steps is None else steps
    order = torch.empty(0, dtype=torch.int64)
    for step in range(total):
        if not len(order):
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:size], order[size:]
        chosen = {name: value[rows] for name, value in per_sample.items()}
        yield Batch(x[rows], torch.full((len(rows),), -1), step, size, per_sample=chosen)
