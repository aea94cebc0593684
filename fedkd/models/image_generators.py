"""A conditional generator of images, as pure functions on named tensors, for docs/strategies/fedfuse.md.

x = tanh(Conv(LReLU(BN(Conv(up(LReLU(BN(Conv(up(BN(Linear(concat(noise, one-hot label)))))))))))), images in [-1, 1].
It starts on a grid of a quarter of the image's side, rounded up, and crops the result, so any size works: 8 x 8,
28 x 28, 32 x 32. Shapes: B images, N noise width, C classes, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.models.generators import affine, batch_norm, normalise
from fedkd.payload import Weights
from fedkd.seeds import Stream

WIDE, NARROW = 32, 16  # channels before and after the second convolution
SLOPE = 0.2  # of LeakyReLU below 0
LEVELS = 255  # steps between -1 and 1 of an image sent as bytes

Shape = tuple[int, ...]  # channels, height, width


def init(stream: Stream, *, noise: int, classes: int, shape: Shape) -> Weights:
    """Fresh entries with torch's defaults, all from `stream`: 132 thousand for noise 64 and images of 1 x 28 x 28."""
    channels, rows, columns = shape[0], *_grid(shape)
    draw = stream.torch()
    return {
        **affine("hidden", (WIDE * rows * columns, noise + classes), draw),
        **batch_norm("norm1", WIDE),
        **affine("conv1", (WIDE, WIDE, 3, 3), draw),
        **batch_norm("norm2", WIDE),
        **affine("conv2", (NARROW, WIDE, 3, 3), draw),
        **batch_norm("norm3", NARROW),
        **affine("conv3", (channels, NARROW, 3, 3), draw),
    }


def generate(weights: Weights, y_B: Tensor, noise_BN: Tensor, shape: Shape, *, training: bool = False) -> Tensor:
    """Images (B, channels, H, W) in (-1, 1) for labels `y_B` (int64) and noise.

    In training the batch's statistics normalise, and the running ones in `weights` move IN PLACE: pass copies of what
    must not change. Otherwise the running statistics normalise, and nothing changes.
    """
    label_BC = torch.eye(weights["hidden.weight"].shape[1] - noise_BN.shape[1], dtype=noise_BN.dtype)[y_B]
    x = F.linear(torch.cat([noise_BN, label_BC], 1), weights["hidden.weight"], weights["hidden.bias"])
    # Channels last takes two thirds of the time.
    x = x.view(len(y_B), WIDE, *_grid(shape)).contiguous(memory_format=torch.channels_last)
    x = normalise(weights, "norm1", x, training)
    for conv, norm in (("conv1", "norm2"), ("conv2", "norm3")):
        x = _convolve(weights, conv, F.interpolate(x, scale_factor=2, mode="nearest"))
        x = F.leaky_relu(normalise(weights, norm, x, training), SLOPE)
    return _convolve(weights, "conv3", x)[:, :, : shape[1], : shape[2]].tanh().contiguous()


def to_bytes(x: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 for the wire: 0 is -1, 255 is 1, for any top byte of the data set."""
    return ((x + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).to(torch.uint8)


def from_bytes(x: Tensor) -> Tensor:
    """The inverse of `to_bytes`, to half a step: images in [-1, 1], float32."""
    return x.float() * (2 / LEVELS) - 1


def _grid(shape: Shape) -> tuple[int, int]:
    return -(-shape[1] // 4), -(-shape[2] // 4)


def _convolve(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
