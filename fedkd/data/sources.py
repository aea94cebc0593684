"""Sources of samples, loaded whole into memory: scikit-learn's digits and tables, torchvision's data sets, users' own.

Importing this module is cheap: torch and torchvision are imported when a source is loaded.
"""

from __future__ import annotations

import difflib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedkd import errors, extensions, strict_yaml
from fedkd.config import DataConfig
from fedkd.data import digits, idx, image_spec, label_names, own_arrays, tables, user_data
from fedkd.data.image_spec import OWN, ImageSpec, Pair
from fedkd.data.user_data import Data
from fedkd.errors import ConfigError, DataError, FedkdError, Mistake

if TYPE_CHECKING:
    from fedkd.data.samples import Dataset, Samples


class Parts(NamedTuple):
    """A source as stored: images (N, channels, height, width) uint8, labels (N,) int64 from 0, names of the labels."""

    train: Pair
    test: Pair
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Root:
    """The data root, and where the choice comes from."""

    path: Path
    chosen_by: str
    download: bool

    def __str__(self) -> str:
        return f"data root {self.path}, from {self.chosen_by}"


@dataclass(frozen=True, kw_only=True)
class Source:
    about: str
    read: Callable[[Root], Parts]
    labels: tuple[str, ...]  # available without the data set, which a device does not have
    shape: tuple[int, int, int]
    mean: tuple[float, ...]  # per channel, of the training pixels scaled to 0..1
    std: tuple[float, ...]
    top: int = 255  # the byte that is 1 after scaling to 0..1


def names() -> tuple[str, ...]:
    """The allowed names of `data.name`."""
    return (*SOURCES, *tables.NAMES, *extensions.names("data"), OWN)


def load(config: DataConfig) -> Dataset:
    """The source `config.name` in memory. Raises ConfigError, and DataError for files that cannot be used."""
    _check(config)
    if config.name == OWN and not image_spec.are_images(config):
        return _of_arrays(config, own_arrays.read(_place(config), config))
    if config.name not in (*SOURCES, OWN):
        return _of_arrays(config, _arrays(config))
    spec = spec_of(config)
    from fedkd.data.samples import Dataset

    if config.name == OWN:
        parts = Parts(*_own(config, spec), spec.labels)
    else:
        parts = SOURCES[config.name].read(find_root(config))
    return Dataset(config.name, parts.labels, samples(parts.train, spec), samples(parts.test, spec))


def spec_of(config: DataConfig) -> ImageSpec:
    """Labels, shape and scaling of all images of a run, without loading a data set. Raises ConfigError."""
    _check(config)
    if config.name == OWN:
        if not image_spec.are_images(config):
            what, mend = (
                "own data that are no images have no agreed form for devices",
                "run it in simulation: fedkd run",
            )
            raise ConfigError(what, where="data", mend=mend)
        return image_spec.of_own(config)
    if config.name not in SOURCES:
        mend = "bring the samples as data=own, or choose a data set of images"
        raise ConfigError(f"data={config.name} has no agreed form for devices", where="data", mend=mend)
    source = SOURCES[config.name]
    scale, offset = image_spec.scaling(config.scaling, source.mean, source.std, source.top)
    return ImageSpec(config.name, source.labels, source.shape, source.top, scale, offset, config.resize)


def _check(config: DataConfig) -> None:
    """Raises ConfigError for an unknown name, and for keys that do not go with it."""
    if config.name not in names():
        near = difflib.get_close_matches(config.name, names(), n=1)
        mend = (f"did you mean '{near[0]}'? " if near else "") + f"known: {', '.join(names())}"
        raise ConfigError(f"data.name = '{config.name}' is unknown", where="data", mend=mend)
    errors.refuse(
        Mistake(f"data.{key} = {strict_yaml.write(getattr(config, key))}", "data", mend)
        for key, mend in image_spec.problems(config)
    )


def _arrays(config: DataConfig) -> Data:
    """The arrays of an embedded table, or of a user's function. Raises ConfigError and DataError."""
    added = extensions.find("data", config.name)
    if added is None:
        return tables.read(config.name)
    root = Path(config.root).expanduser() if config.root else None
    try:
        given = added.value(root)
    except FedkdError:
        raise
    except Exception as error:  # the user's code: anything
        what = f"data '{added.name}' raises {type(error).__name__}: {error}"
        raise DataError(what, where=extensions.place(added, error), mend="mend the file") from error
    if not isinstance(given, Data):
        what = f"data '{added.name}' gives a {type(given).__name__}"
        raise DataError(what, where=added.origin, mend="return fedkd.Data(train=(x, y), test=(x, y))")
    return given


def _of_arrays(config: DataConfig, given: Data) -> Dataset:
    """A data set of arrays. Bytes are scaled as pixels, floats only by data.scaling=standard, token ids never."""
    import torch

    from fedkd.data.samples import Dataset, Samples

    whole = given.split(config.test_share)
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    x = whole.train_x
    if x.dtype == np.uint8:
        mean, std = user_data.statistics(x / np.float32(255))
        scale, offset = image_spec.scaling(config.scaling, mean, std, 255)
    elif x.dtype == np.float32 and config.scaling == "standard":
        mean, std = user_data.statistics(x)
        mean, std = tuple(config.mean or mean), tuple(config.std or std)
        scale, offset = image_spec.scaling("standard", mean, std, 1)
    pairs = ((whole.train_x, whole.train_y), (whole.test_x, whole.test_y))
    train, test = (Samples(torch.tensor(x), torch.tensor(y), scale, offset) for x, y in pairs)
    return Dataset(config.name, whole.labels, train, test, whole.users, whole.vocabulary)


def find_root(config: DataConfig) -> Root:
    """The folder of data sets: `data.root`, else the environment variable FEDKD_DATA, else the user's cache folder."""
    if config.root:
        return Root(Path(config.root).expanduser(), "data.root", config.download)
    if from_environment := os.environ.get("FEDKD_DATA"):
        return Root(Path(from_environment).expanduser(), "FEDKD_DATA", config.download)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Root(Path(cache).expanduser() / "fedkd" / "data", "the default", config.download)


def _own(config: DataConfig, spec: ImageSpec) -> tuple[Pair, Pair]:
    from fedkd.data import own_data

    return own_data.of_simulation(_place(config), spec, config.test, config.test_share)


def _place(config: DataConfig) -> Path:
    if not config.root:
        mend = "name the folder of images or the file: data.root=PATH"
        raise ConfigError("data=own has no place to come from: data.root = null", where="data", mend=mend)
    return Path(config.root)


def samples(pair: Pair, spec: ImageSpec) -> Samples:
    """Images and labels as tensors, scaled as agreed."""
    import torch

    from fedkd.data.samples import Samples

    x, y = pair
    # np.array copies: arrays that view a file's bytes are read-only, which torch does not support.
    bytes_, labels = torch.from_numpy(np.array(x, np.uint8, order="C")), torch.from_numpy(np.array(y, np.int64))
    return Samples(bytes_, labels, spec.scale, spec.offset)


def _idx_source(
    kind: str,
    prefixes: tuple[str, str],
    labels: tuple[str, ...],
    *,
    first: int = 0,
    transposed: bool = False,
    **fetch: Any,
) -> Callable[[Root], Parts]:
    """A reader of four idx files below `kind`/raw; `first` is the smallest label stored."""
    files = [f"{kind}/raw/{prefix}-{part}-ubyte" for prefix in prefixes for part in ("images-idx3", "labels-idx1")]

    def read(root: Root) -> Parts:
        missing = [name for name in files if idx.find(root.path, name) is None]
        if missing:
            _fetch(root, kind, missing, **fetch)
        arrays = [idx.read(root.path, name) for name in files]
        train, test = (
            _paired(root, files[2 * part], x, y, first, len(labels))
            for part, (x, y) in enumerate((arrays[:2], arrays[2:]))
        )
        if transposed:
            train, test = ((x.swapaxes(-1, -2), y) for x, y in (train, test))
        return Parts(train, test, labels)

    return read


def _paired(
    root: Root, name: str, x: np.ndarray, y: np.ndarray, first: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y) or not len(x):
        raise idx.damaged(root.path, name, f"does not match its labels: shapes {x.shape} and {y.shape}")
    if y.min() < first or y.max() >= first + classes:
        what = f"has labels {y.min()} to {y.max()}, expected {first} to {first + classes - 1}"
        raise idx.damaged(root.path, name, what)
    return x[:, None], y.astype(np.int64) - first


def _cifar_source(kind: str, folder: str) -> Callable[[Root], Parts]:
    """A reader of torchvision's CIFAR classes, which compare each file's MD5 before unpickling it."""

    def read(root: Root) -> Parts:
        if not (root.path / folder).is_dir():  # before importing torchvision, which takes seconds
            _fetch(root, kind, [folder])
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        source = getattr(datasets, kind)
        sums = {**dict(source.train_list + source.test_list), source.meta["filename"]: source.meta["md5"]}
        paths = {f"{folder}/{name}": md5 for name, md5 in sums.items()}
        missing = [name for name in paths if not (root.path / name).is_file()]
        if missing:
            _fetch(root, kind, missing)
        for name, md5 in paths.items():
            if not check_integrity(str(root.path / name), md5):
                raise idx.damaged(root.path, name, "is truncated or damaged (MD5 differs)")
        train, test = (source(str(root.path), train=is_train) for is_train in (True, False))
        return Parts(_channels_first(train), _channels_first(test), tuple(train.classes))

    return read


def _channels_first(part: Any) -> tuple[np.ndarray, np.ndarray]:
    return part.data.transpose(0, 3, 1, 2), np.array(part.targets)


def _fetch(root: Root, kind: str, missing: list[str], **options: Any) -> None:
    """Download missing files with torchvision, if that is allowed; else raise DataError that names them."""
    if not root.download:
        others = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        is_there = root.path.is_dir()
        what = f"{missing[0]}{others} not found" if is_there else f"no {kind}: the data root does not exist"
        mend = "fetch it with data.download=true, or set data.root or FEDKD_DATA to the folder that holds it"
        raise DataError(what, where=str(root), mend=mend)
    from torchvision import datasets

    try:
        root.path.mkdir(parents=True, exist_ok=True)
        for is_train in (True, False):  # EMNIST looks only for the files of the half it is asked for
            getattr(datasets, kind)(str(root.path), train=is_train, download=True, **options)
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        mend = "check the network, or put the files there yourself and leave data.download false"
        raise DataError(f"cannot download {kind}: {error}", where=str(root), mend=mend) from error


_MNIST_FILES = ("train", "t10k")
_LETTERS_FILES = ("emnist-letters-train", "emnist-letters-test")

SOURCES = {
    "digits": Source(
        about="1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn: nothing to download",
        read=lambda root: Parts(*digits.read(), label_names.DIGITS),
        labels=label_names.DIGITS,
        shape=(1, 8, 8),
        mean=(0.3051,),
        std=(0.3762,),
        top=16,
    ),
    "mnist": Source(
        about="MNIST: 70,000 handwritten digits of 28x28 pixels",
        read=_idx_source("MNIST", _MNIST_FILES, label_names.DIGITS),
        labels=label_names.DIGITS,
        shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion-mnist": Source(
        about="Fashion-MNIST: 70,000 pictures of ten kinds of clothing, 28x28 pixels",
        read=_idx_source("FashionMNIST", _MNIST_FILES, label_names.FASHION),
        labels=label_names.FASHION,
        shape=(1, 28, 28),
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "emnist-letters": Source(
        about="EMNIST letters: 145,600 handwritten letters, 26 classes, 28x28 pixels",
        # Stored transposed and with labels from 1, as published: we turn the images upright and count from 0.
        read=_idx_source("EMNIST", _LETTERS_FILES, label_names.LETTERS, first=1, transposed=True, split="letters"),
        labels=label_names.LETTERS,
        shape=(1, 28, 28),
        mean=(0.1722,),
        std=(0.3309,),
    ),
    "cifar10": Source(
        about="CIFAR-10: 60,000 colour photographs of ten kinds of things, 32x32 pixels",
        read=_cifar_source("CIFAR10", "cifar-10-batches-py"),
        labels=label_names.CIFAR10,
        shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Source(
        about="CIFAR-100: 60,000 colour photographs of a hundred kinds of things, 32x32 pixels",
        read=_cifar_source("CIFAR100", "cifar-100-python"),
        labels=label_names.CIFAR100,
        shape=(3, 32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}
