"""FedGen's generator of latents, as pure functions on named tensors (docs/strategies/fedgen.md, equation 1).

z = Linear(ReLU(BatchNorm(Linear(concat(noise, label))))), the label one-hot or, as an option, a learned embedding.
Shapes: B samples, N noise width, H hidden width, d latent width, C classes, L label width.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.payload import Weights
from fedkd.seeds import Stream

Conditioning = Literal["one_hot", "embedding"]
NoiseDistribution = Literal["uniform", "normal"]


def init(
    stream: Stream, *, noise: int, hidden: int, latent: int, classes: int, conditioning: Conditioning = "one_hot"
) -> Weights:
    """Fresh entries with torch's default distributions, all from `stream`. `latent` is the student's latent_width.

    An embedding is as wide as the noise, so that the first layer has 2N inputs instead of N + C.
    """
    generator = stream.torch()
    embedding = {}
    if conditioning == "embedding":
        embedding["embedding.weight"] = torch.randn(classes, noise, generator=generator)
    label_width = noise if conditioning == "embedding" else classes
    return {
        **embedding,
        **affine("hidden", (hidden, noise + label_width), generator),
        **batch_norm("norm", hidden),
        **affine("out", (latent, hidden), generator),
    }


def generate(weights: Weights, y_B: Tensor, noise_BN: Tensor, *, training: bool = False) -> Tensor:
    """Latents z (B, d) for labels `y_B` (int64) and noise.

    In training the batch's statistics normalise, and `norm.running_mean` and `norm.running_var` in `weights` move
    IN PLACE towards them (momentum 0.1, unbiased variance): pass copies of what must not change. Otherwise the running
    statistics normalise, and nothing changes.
    """
    label_BL = _label_table(weights, noise_BN).index_select(0, y_B)
    hidden_BH = F.linear(torch.cat([noise_BN, label_BL], 1), weights["hidden.weight"], weights["hidden.bias"])
    hidden_BH = normalise(weights, "norm", hidden_BH, training)
    return F.linear(hidden_BH.relu(), weights["out.weight"], weights["out.bias"])


def normalise(weights: Weights, name: str, x: Tensor, training: bool) -> Tensor:
    """BatchNorm of this name, with torch's defaults; in training it moves its running statistics in place."""
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], training, 0.1, 1e-5)


def learnable(weights: Weights) -> tuple[str, ...]:
    """Names of the entries that an optimiser updates: all except for the running statistics."""
    return tuple(name for name in weights if ".running_" not in name)


def draw_noise(shape: Sequence[int], generator: torch.Generator, distribution: NoiseDistribution = "uniform") -> Tensor:
    """Noise of FedGen's code, U[0, 1), or of its paper, N(0, 1)."""
    draw = torch.rand if distribution == "uniform" else torch.randn
    return draw(tuple(shape), generator=generator)


def draw_inputs(
    labels_C: Tensor, count: int, noise: int, generator: torch.Generator, distribution: NoiseDistribution = "uniform"
) -> tuple[Tensor, Tensor]:
    """Labels y (B,) in proportion to `labels_C`, and noise (B, N), for `generate`; the labels are drawn first."""
    y_B = torch.multinomial(labels_C, count, replacement=True, generator=generator)
    return y_B, draw_noise((count, noise), generator, distribution)


def _label_table(weights: Weights, noise_BN: Tensor) -> Tensor:
    """Each label's input (C, L): its learned embedding, or its row of the identity, the one-hot vector."""
    if "embedding.weight" in weights:
        return weights["embedding.weight"]
    classes = weights["hidden.weight"].shape[1] - noise_BN.shape[1]
    return torch.eye(classes, dtype=noise_BN.dtype, device=noise_BN.device)


def affine(name: str, size: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """Entries of a linear or convolutional layer with torch's default U(-1/sqrt(f), 1/sqrt(f)), f its fan-in."""
    bound = 1 / math.sqrt(math.prod(size[1:]))
    return {
        f"{name}.weight": torch.empty(size).uniform_(-bound, bound, generator=generator),
        f"{name}.bias": torch.empty(size[0]).uniform_(-bound, bound, generator=generator),
    }


def batch_norm(name: str, width: int) -> dict[str, Tensor]:
    """Initial entries of a BatchNorm layer."""
    ones, zeros = torch.ones(width), torch.zeros(width)
    return {
        f"{name}.weight": ones,
        f"{name}.bias": zeros,
        f"{name}.running_mean": zeros.clone(),
        f"{name}.running_var": ones.clone(),
    }
