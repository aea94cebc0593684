"""Samples in memory: bytes as stored, scaled when a round's samples are gathered."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """N images with labels. uint8 takes a quarter of the memory, and scaling a round's batches at once is free."""

    x: Tensor  # (N, channels, height, width) uint8
    y: Tensor  # (N,) int64
    scale: tuple[float, ...]  # per channel: value = byte * scale + offset
    offset: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled images (n, channels, height, width) float32 and labels (n,) at `index` (n,) int64."""
        shape = (-1, 1, 1)
        scale, offset = torch.tensor(self.scale).view(shape), torch.tensor(self.offset).view(shape)
        # index_select, not x[index]: 16 against 147 us for 250 images of MNIST.
        return self.x.index_select(0, index).float().mul_(scale).add_(offset), self.y.index_select(0, index)


@dataclass(frozen=True)
class Dataset:
    """A loaded source: its two parts and the names of its labels."""

    name: str
    labels: tuple[str, ...]
    train: Samples
    test: Samples

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width


@dataclass(frozen=True, eq=False)
class Proxy:
    """A public set of images, equal and in equal order everywhere: no client's training data, no test data."""

    name: str
    samples: Samples
    is_labelled: bool  # whether `samples.y` holds labels of the task; else it is all -1
    checksum: int  # of the images in their order, below 2^52; both ends compare it

    def __len__(self) -> int:
        return len(self.samples)
