"""Students by name: blocks from shallow to deep, the last one a single Linear called `head`.

Each block has parameters, and no operation lies between blocks, because FedD2S may drop any block.
docs/students.md says how each student adapts to the shape of the data.
"""

import difflib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import extensions
from fedkd.config import StudentsConfig
from fedkd.errors import ConfigError
from fedkd.extensions import LIBRARIES
from fedkd.models import foreign, more_students, wrapped
from fedkd.models.layers import Extractor, Norm, Shape, normalise, sequence
from fedkd.student import Student

Stem = Literal["standard", "small"]
_ROWS, _SIGNALS, _IMAGES, _TOKENS = "table rows", "signals", "images", "token ids"


@dataclass(frozen=True)
class Architecture:
    """How to make the blocks before the head, and what samples they need."""

    # Of token ids, the shape is (vocabulary, length). A name: a student of another library, with its small stem.
    extractor: Callable[[Shape, Norm], Extractor] | str
    least_side: int = 1  # pixels; below it a feature map vanishes, or BatchNorm gets one value in a batch of one
    takes: tuple[str, ...] = (_IMAGES,)
    has_norms: bool = False
    # Channels last if it is faster in training and evaluation (docs/benchmark.md): true for large convolutions, not
    # for strided ones of few channels.
    layout: torch.memory_format = torch.contiguous_format


def make(
    name: str, shape: Shape, classes: int, norm: Norm = "batch", stem: Stem = "standard", vocabulary: int = 0
) -> Student:
    """The student `name` for samples of `shape`. Its weights are torch's; `student.build` draws them from a stream.

    `vocabulary`: the samples are token ids from 0 up to it; 0: they are floats.
    Raises ConfigError for an unknown name, for samples that do not fit, for norm="group" if the student has no
    normalisation layer (the default "batch" then has no effect), and for a stem that it does not have.
    """
    if name.startswith(LIBRARIES):
        return foreign.make(name, shape, classes, stem)
    if stem != "standard":
        mend = "it replaces the first layers of students of torchvision and timm: students=torchvision:resnet18"
        raise ConfigError(f"student {name!r} has no stem '{stem}'", where="students.stem", mend=mend)
    if added := extensions.find("student", name):
        return _of_user(added, shape, classes, vocabulary)
    architecture = _known(name, "students.name")
    _check_fit(name, architecture, shape, norm, vocabulary)
    if isinstance(architecture.extractor, str):
        return foreign.make(architecture.extractor, shape, classes, "small")
    blocks, width = architecture.extractor((vocabulary, *shape) if vocabulary else shape, norm)
    blocks["head"] = nn.Linear(width, classes)
    return Student(blocks, architecture.layout)


def names() -> tuple[str, ...]:
    """All students, simplest first, then those of users. The files of conf/students name ours without torch."""
    return (*_ARCHITECTURES, *extensions.names("student"))


def _known(name: str, where: str) -> Architecture:
    if name in _ARCHITECTURES:
        return _ARCHITECTURES[name]
    close = difflib.get_close_matches(name, names(), n=1)
    mend = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"unknown student {name!r}", where=where, mend=f"{mend}known: {', '.join(names())}")


def _check_fit(name: str, architecture: Architecture, shape: Shape, norm: Norm, vocabulary: int) -> None:
    kind = _TOKENS if vocabulary else {1: _ROWS, 2: _SIGNALS, 3: _IMAGES}.get(len(shape), "arrays")
    side = min(shape[1:]) if kind == _IMAGES else 0
    if kind not in architecture.takes or (kind == _IMAGES and side < architecture.least_side):
        least, height_width = architecture.least_side, " x ".join(map(str, shape[1:]))
        what = f"student {name!r} needs images of at least {least} x {least} pixels, these have {height_width}"
        if kind not in architecture.takes:
            takes = " or ".join(architecture.takes)
            what = f"student {name!r} takes {takes}, these samples are {kind} of shape {list(shape)}"
        able = [name for name, a in _ARCHITECTURES.items() if kind in a.takes and (not side or a.least_side <= side)]
        mend = f"choose students={able[0]}" if len(able) == 1 else f"choose one of: {', '.join(able)}"
        raise ConfigError(what, where="students.name", mend=mend)
    if norm not in ("batch", "group"):
        raise ConfigError(f"unknown norm {norm!r}", where="students.norm", mend="known: batch, group")
    if norm == "group" and not architecture.has_norms:
        what = f"student {name!r} has no normalisation layers, so norm 'group' does not apply"
        raise ConfigError(what, where="students.norm", mend="leave students.norm out")


def make_any(
    name: str, shape: Shape, classes: int, norm: Norm = "batch", stem: Stem = "standard", vocabulary: int = 0
) -> Student:
    """`make` for mixtures: `norm` and `stem` apply to the architectures that have them."""
    has_norms = name in _ARCHITECTURES and _ARCHITECTURES[name].has_norms
    has_stem = name.startswith(LIBRARIES)
    return make(name, shape, classes, norm if has_norms else "batch", stem if has_stem else "standard", vocabulary)


def check(name: str, student: Student, x: Tensor) -> None:
    """Try a student of somebody else's code on two samples. Raises ConfigError if it is no classifier of them."""
    if student.draws_itself:
        wrapped.check(student, x, f"student {name!r}")


def _of_user(added: extensions.Extension, shape: Shape, classes: int, vocabulary: int) -> Student:
    """What a user's function or class makes. Raises ConfigError, which says that the error is in the user's code."""
    try:
        net = added.value(shape, classes)
    except ConfigError:
        raise
    except Exception as error:  # the user's code: anything
        what = f"student '{added.name}' cannot be made: {type(error).__name__}: {error}"
        raise ConfigError(what, where=extensions.place(added, error), mend="mend the file") from error
    return wrapped.make(net, shape, added.options.get("head"), dtype=torch.int64 if vocabulary else torch.float32)


def assign(chosen: StudentsConfig, sizes: Sequence[int], clients: int, rng: np.random.Generator) -> tuple[str, ...]:
    """The architecture of each client under a mixture; empty if there is none.

    Shares become whole numbers of clients by largest remainders; `sizes` are the clients' numbers of training samples.
    Raises ConfigError.
    """
    mix = chosen.mix
    if mix is None:
        return ()
    for name in mix:
        if not name.startswith(LIBRARIES) and name not in extensions.names("student"):
            _known(name, "students.mix")
    if not isinstance(mix, Mapping):
        if len(mix) != clients:
            what = f"students.mix names {len(mix)} students for {clients} clients"
            raise ConfigError(what, where="students.mix", mend="one per client, or shares: '{mlp: 0.5, lenet5: 0.5}'")
        return tuple(mix)
    shares = np.array([float(share) for share in mix.values()])
    if not len(shares) or not np.isfinite(shares).all() or not (shares > 0).all():
        what = f"the shares of students.mix must be positive numbers: {dict(mix)}"
        raise ConfigError(what, where="students.mix", mend="leave out students without a share: '{mlp: 1, lenet5: 1}'")
    quota = shares / shares.sum() * clients
    counts = np.floor(quota).astype(int)
    counts[np.argsort(counts - quota, kind="stable")[: clients - counts.sum()]] += 1
    names = [name for name, count in zip(mix, counts, strict=True) for _ in range(count)]
    order = rng.permutation(clients) if chosen.assign == "shuffled" else np.argsort(sizes, kind="stable")
    by_client = dict(zip(order.tolist(), names, strict=True))
    return tuple(by_client[client] for client in range(clients))


def _fedgen_cnn(shape: Shape, norm: Norm) -> Extractor:
    """FedGen's code: strided 3x3 convolutions; z is linear, of width 32."""
    channels, height, width = shape
    pixels = -(-height // 4) * -(-width // 4)  # each stride of 2 rounds up
    conv1, conv2 = _strided(channels, 6, norm), _strided(6, 16, norm)
    latent = sequence(flatten=nn.Flatten(), linear=nn.Linear(16 * pixels, 32))
    return OrderedDict(conv1=conv1, conv2=conv2, latent=latent), 32


def _pooled_cnn(first: int, second: int, dense: int) -> Callable[[Shape, Norm], Extractor]:
    """Padded 5x5 convolutions with pooling, of these widths (McMahan et al., AISTATS 2017)."""

    def extractor(shape: Shape, norm: Norm) -> Extractor:
        channels, height, width = shape
        conv1, conv2 = _pooled(channels, first, padding=2), _pooled(first, second, padding=2)
        return OrderedDict(conv1=conv1, conv2=conv2, fc1=_dense(second * (height // 4) * (width // 4), dense)), dense

    return extractor


def _knfu_cnn(has_norms: bool) -> Callable[[Shape, Norm], Extractor]:
    """Strided 5x5 convolutions, normalised for FedFuse without a public set."""

    def extractor(shape: Shape, norm: Norm) -> Extractor:
        channels, height, width = shape
        pixels = -(-height // 4) * -(-width // 4)  # each stride of 2 rounds up

        def convolution(inputs: int, outputs: int) -> nn.Sequential:
            norms = {"norm": normalise(norm, outputs)} if has_norms else {}
            return sequence(conv=nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), **norms, relu=nn.ReLU())

        return OrderedDict(conv1=convolution(channels, 16), conv2=convolution(16, 32), fc1=_dense(32 * pixels, 64)), 64

    return extractor


def _lenet5(shape: Shape, norm: Norm) -> Extractor:
    """LeCun et al. 1998 with ReLU and max pooling, as usual today. Made for 32 x 32; smaller images are padded."""
    channels, height, width = shape
    padding = [max(0, -(-(32 - side) // 2)) for side in (height, width)]
    rows, columns = (((side + 2 * pad - 4) // 2 - 4) // 2 for side, pad in zip((height, width), padding, strict=True))
    conv1, conv2 = _pooled(channels, 6, padding=(padding[0], padding[1])), _pooled(6, 16, padding=0)
    return OrderedDict(conv1=conv1, conv2=conv2, fc1=_dense(16 * rows * columns, 120), fc2=_dense(120, 84)), 84


def _mlp(shape: Shape, norm: Norm) -> Extractor:
    """McMahan et al.'s 2NN: two hidden layers of 200."""
    return OrderedDict(fc1=_dense(math.prod(shape), 200), fc2=_dense(200, 200)), 200


def _resnet(units: int) -> Callable[[Shape, Norm], Extractor]:
    """He et al., CVPR 2016, section 4.2: depth 6 * units + 2, widths 16, 32, 64, with shortcuts of option B."""

    def extractor(shape: Shape, norm: Norm) -> Extractor:
        stem = sequence(conv=_conv3x3(shape[0], 16), norm=normalise(norm, 16), relu=nn.ReLU())
        stage1, stage2 = _stage(16, 16, units, norm), _stage(16, 32, units, norm)
        stage3 = _stage(32, 64, units, norm)
        stage3.add_module("pool", nn.AdaptiveAvgPool2d(1))
        stage3.add_module("flatten", nn.Flatten())
        return OrderedDict(stem=stem, stage1=stage1, stage2=stage2, stage3=stage3), 64

    return extractor


class Residual(nn.Module):
    """relu(x' + f(x)), f two normalised 3x3 convolutions; x' = x, or a normalised 1x1 convolution of it (option B)."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residue = sequence(
            conv1=_conv3x3(channels, width, stride),
            norm1=normalise(norm, width),
            relu=nn.ReLU(),
            conv2=_conv3x3(width, width),
            norm2=normalise(norm, width),
        )
        self.shortcut = None
        if stride != 1 or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = sequence(conv=conv, norm=normalise(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.shortcut is None else self.shortcut(x)
        return (short + self.residue(x)).relu()


def _stage(channels: int, width: int, units: int, norm: Norm) -> nn.Sequential:
    """Residual units; the first halves the image if it widens."""
    first = Residual(channels, width, stride=1 if channels == width else 2, norm=norm)
    rest = (Residual(width, width, stride=1, norm=norm) for _ in range(units - 1))
    return sequence(**{f"unit{number}": unit for number, unit in enumerate((first, *rest), start=1)})


def _strided(channels: int, width: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
    return sequence(conv=conv, norm=normalise(norm, width), relu=nn.ReLU())


def _pooled(channels: int, width: int, padding: int | tuple[int, int]) -> nn.Sequential:
    return sequence(conv=nn.Conv2d(channels, width, 5, padding=padding), relu=nn.ReLU(), pool=nn.MaxPool2d(2))


def _dense(inputs: int, width: int) -> nn.Sequential:
    return sequence(flatten=nn.Flatten(), linear=nn.Linear(inputs, width), relu=nn.ReLU())


def _conv3x3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


_ARCHITECTURES = {
    "mlp": Architecture(_mlp, takes=(_ROWS, _SIGNALS, _IMAGES, "arrays")),
    "lenet5": Architecture(_lenet5, layout=torch.channels_last),
    "fedgen-cnn": Architecture(_fedgen_cnn, least_side=5, has_norms=True),
    "mcmahan-cnn": Architecture(_pooled_cnn(32, 64, 512), least_side=4, layout=torch.channels_last),
    "knfu-cnn": Architecture(_knfu_cnn(has_norms=False)),
    "knfu-cnn-bn": Architecture(_knfu_cnn(has_norms=True), least_side=5, has_norms=True),
    "fedd2s-cnn": Architecture(_pooled_cnn(16, 32, 128), least_side=4, layout=torch.channels_last),
    "resnet8": Architecture(_resnet(units=1), least_side=5, has_norms=True, layout=torch.channels_last),
    "resnet20": Architecture(_resnet(units=3), least_side=5, has_norms=True, layout=torch.channels_last),
    "resnet18": Architecture("torchvision:resnet18", least_side=9),
    "vit-tiny": Architecture(more_students.vit_tiny, least_side=8),
    "cnn1d": Architecture(more_students.cnn1d, takes=(_SIGNALS,), has_norms=True),
    "textcnn": Architecture(more_students.textcnn, takes=(_TOKENS,)),
    "gru": Architecture(more_students.gru, takes=(_TOKENS,)),
}
