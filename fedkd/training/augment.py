"""Augmentation of a participation's training samples: operations on whole batches, drawn on the CPU.

The draws depend on (seed, round, client) and on what was drawn before, never on the worker.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator, Tensor

from fedkd import seeds
from fedkd.config import TrainConfig
from fedkd.engine import Job
from fedkd.errors import ConfigError
from fedkd.problem import Problem

PAD = 4  # pixels on each side, before a crop of the original size
PART = 1000  # samples changed at a time: temporary copies stay small

Change = Callable[[Tensor, Tensor, TrainConfig, Generator], Tensor]  # samples, black, configuration, draws


def names(train: TrainConfig) -> list[str]:
    """The configured operations, in their order."""
    chosen = [train.augment] if isinstance(train.augment, str) else train.augment
    return [name for name in chosen if name != "none"]


def check(train: TrainConfig, shape: Sequence[int], vocabulary: int) -> None:
    """Raises ConfigError for an operation that samples of this shape do not allow."""
    kind = "token ids" if vocabulary else "no images" if len(shape) != 3 else ""
    wrong = [name for name in names(train) if kind and (vocabulary or name != "noise")]
    if wrong:
        raise ConfigError(
            f"train.augment names '{wrong[0]}', and the samples are {kind} (shape {list(shape)})",
            where="train.augment",
            mend="use train.augment=none" if vocabulary else "use train.augment=noise or none",
        )


def augmented(problem: Problem, job: Job, x: Tensor, black: Sequence[float] = ()) -> Tensor:
    """Scaled samples x (S, ...), changed in place, as training will see them.

    `black`: the scaled value of a pixel that is 0, by channel; it fills what a crop moves in. Empty: 0.
    """
    chosen = names(problem.train)
    if not chosen:
        return x
    fill = torch.tensor(tuple(black) or (0.0,)).view(-1, 1, 1)
    draws = seeds.stream(problem.seed, "augment", round=job.round, client=job.client)
    generator = draws.child(
        job.exchange, job.state.epoch, job.state.position
    ).torch()  # several draws of a round differ
    for part in x.split(PART):
        for name in chosen:
            part.copy_(_CHANGES[name](part, fill, problem.train, generator))
    return x


def _flip(x: Tensor, black: Tensor, train: TrainConfig, generator: Generator) -> Tensor:
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def _crop_flip(x: Tensor, black: Tensor, train: TrainConfig, generator: Generator) -> Tensor:
    """A random crop of the padded image, then a random horizontal flip: He et al., CVPR 2016, section 4.2."""
    size, channels, height, width = x.shape
    padded = black.expand(size, channels, height + 2 * PAD, width + 2 * PAD).clone()
    padded[..., PAD:-PAD, PAD:-PAD] = x
    top, left = torch.randint(2 * PAD + 1, (2, size), generator=generator)
    rows, columns = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
    each, channel = torch.arange(size).view(-1, 1, 1, 1), torch.arange(channels).view(-1, 1, 1)
    return _flip(padded[each, channel, rows[:, None, :, None], columns[:, None, None, :]], black, train, generator)


def _cutout(x: Tensor, black: Tensor, train: TrainConfig, generator: Generator) -> Tensor:
    """A square set to 0, its centre anywhere in the image, so that it may be cut off: DeVries and Taylor 2017."""
    inside = list(_spans(x.shape[-2:], len(x), train.cutout, generator))
    hidden = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hidden, 0.0)


def _spans(sides: Sequence[int], size: int, share: float, generator: Generator) -> Iterator[Tensor]:
    """Which rows, then which columns, the square covers: (size, side) bool."""
    length = max(1, round(share * min(sides)))
    for side in sides:
        start = torch.randint(side, (size, 1), generator=generator) - length // 2
        place = torch.arange(side)
        yield (place >= start) & (place < start + length)


def _noise(x: Tensor, black: Tensor, train: TrainConfig, generator: Generator) -> Tensor:
    return x + train.noise * torch.randn(x.shape, generator=generator)


_CHANGES: dict[str, Change] = {"crop-flip": _crop_flip, "flip": _flip, "cutout": _cutout, "noise": _noise}
