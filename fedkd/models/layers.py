"""What students are made of: sequences of named layers, and normalisation of either kind."""

from collections import OrderedDict
from typing import Literal

from torch import nn

Shape = tuple[int, ...]  # of one sample; of an image: channels, height, width
Norm = Literal["batch", "group"]
Extractor = tuple[OrderedDict[str, nn.Module], int]  # all blocks except for the head, and the width of their output


def sequence(**layers: nn.Module) -> nn.Sequential:
    """Layers by name, so that entries read `conv1.norm.weight`."""
    return nn.Sequential(OrderedDict(layers))


def normalise(norm: Norm, channels: int, batch: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """A normalisation layer; `batch`: the kind of BatchNorm."""
    return batch(channels) if norm == "batch" else nn.GroupNorm(groups(channels), channels)


def groups(channels: int) -> int:
    """Groups of a GroupNorm: the largest divisor of `channels` up to 8 that leaves two channels or more in a group."""
    return max(count for count in range(1, 9) if channels % count == 0 and (count == 1 or 2 * count <= channels))
