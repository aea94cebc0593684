"""Students of signals, of token ids, and larger ones of images, as blocks before the head: docs/students.md."""

import math
from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F  # its usual name
from torch import Tensor, nn

from fedkd.models.layers import Extractor, Norm, Shape, normalise, sequence


def cnn1d(shape: Shape, norm: Norm) -> Extractor:
    """Wang, Yan, Oates, IJCNN 2017: kernels of 8, 5, 3, the mean over time; a quarter of their 128, 256, 128 widths."""
    widths, kernels = (32, 64, 32), (8, 5, 3)
    blocks = OrderedDict[str, nn.Module]()
    for at, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        conv = nn.Conv1d(widths[at - 1] if at else shape[0], width, kernel, padding=kernel // 2)
        blocks[f"conv{at + 1}"] = sequence(conv=conv, norm=normalise(norm, width, nn.BatchNorm1d), relu=nn.ReLU())
    blocks["conv3"].add_module("pool", nn.AdaptiveAvgPool1d(1))
    blocks["conv3"].add_module("flatten", nn.Flatten())
    return blocks, widths[-1]


def textcnn(shape: Shape, norm: Norm) -> Extractor:
    """Kim, EMNLP 2014, CNN-rand: windows of 3, 4, 5 words, 100 features each, dropout 0.5; words of width 128."""
    return OrderedDict(embedding=nn.Embedding(shape[0], 128), windows=Windows(128, (3, 4, 5), 100)), 300


def gru(shape: Shape, norm: Norm) -> Extractor:
    """The last state of one layer of gated units (Cho et al., EMNLP 2014), 128 wide, as its words."""
    return OrderedDict(embedding=nn.Embedding(shape[0], 128), gru=LastState(128, 128, batch_first=True)), 128


def vit_tiny(shape: Shape, norm: Norm) -> Extractor:
    """DeiT-Ti (Touvron et al., ICML 2021): 12 layers, width 192, 3 heads; here 8 x 8 patches and the mean of all.

    Fixed positions and the mean in place of a class token as in Beyer, Zhai, Kolesnikov 2022.
    """
    width, patch = 192, tuple(-(-side // 8) for side in shape[1:])
    patches = Patches(shape[0], width, cast(tuple[int, int], patch))
    layers = {f"layer{number}": Encoder(width, heads=3) for number in range(1, 13)}
    return OrderedDict[str, nn.Module](patches=patches, **layers, norm=Mean(width)), width


class Windows(nn.Module):
    """Words (B, length, d) -> the greatest value of each feature over all windows, (B, kernels * features)."""

    def __init__(self, width: int, kernels: tuple[int, ...], features: int) -> None:
        super().__init__()
        # Padded, so that texts shorter than a window fit.
        self.convs = nn.ModuleList(nn.Conv1d(width, features, kernel, padding=kernel // 2) for kernel in kernels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        found: Tensor = self.dropout(torch.cat([conv(x).relu().amax(2) for conv in self.convs], 1))
        return found


class LastState(nn.GRU):
    """Words (B, length, d) -> the state (B, d) after the last one."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        # nn.GRU keeps a list of its entries, which goes stale when they are exchanged (torch.func.functional_call).
        entries = cast(list[Tensor], list(self._parameters.values()))
        first = x.new_zeros(1, x.shape[0], self.hidden_size)
        states: Tensor = torch.gru(x, first, entries, True, 1, 0.0, self.training, False, True)[1]
        return states[0]


class Patches(nn.Module):
    """Images -> patches (B, number, width) with their positions added."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.conv(x)
        return patches.flatten(2).transpose(1, 2) + positions(*patches.shape[1:])


class Encoder(nn.Module):
    """A layer of attention and one of 4 * width hidden units, each with a shortcut and normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden = sequence(wide=nn.Linear(width, 4 * width), gelu=nn.GELU(), narrow=nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        hidden: Tensor = x + self.hidden(self.norm2(x))
        return hidden


class Mean(nn.LayerNorm):
    """The mean over all patches, normalised: (B, number, width) -> (B, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


def positions(width: int, rows: int, columns: int) -> Tensor:
    """Sines and cosines of row and column at width / 4 frequencies, (rows * columns, width); no entries."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4 - 1))
    y, x = (torch.arange(side)[:, None] * frequencies for side in (rows, columns))
    y, x = y[:, None].expand(-1, columns, -1), x.expand(rows, -1, -1)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 2).flatten(0, 1)
