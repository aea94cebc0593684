"""Proxy sets: public images for the algorithms that need some. Never the clients' data, never the test data.

`held-out` reserves images of the training set before the partition, `unused` takes images that the partition gave to no
client, `noise` draws bytes, and any other name is a foreign source, of which only the images are used.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from fedkd import seeds
from fedkd.config import DataConfig, RunConfig
from fedkd.data import sources
from fedkd.data.image_spec import OWN
from fedkd.data.partition import Partition
from fedkd.data.samples import Dataset, Proxy, Samples
from fedkd.errors import ConfigError

OF_THE_TASK = ("held-out", "unused")  # images of the task's own training set


def names() -> tuple[str, ...]:
    """The allowed names of `proxy.name`."""
    return ("none", *OF_THE_TASK, "noise", *sources.SOURCES)


def hold_out(config: RunConfig, dataset: Dataset) -> np.ndarray:
    """The training images (n,) that no client may get, ascending; none unless `proxy=held-out`. Raises ConfigError."""
    if config.proxy.name != "held-out":
        return np.empty(0, np.int64)
    return _choose(config, dataset, np.arange(len(dataset.train)))


def load(config: RunConfig, dataset: Dataset, partition: Partition, taken: np.ndarray) -> Proxy | None:
    """The public set of a run; `taken` is the result of `hold_out`. Raises ConfigError and DataError."""
    name = config.proxy.name
    if name == "none":
        return None
    if name == "noise":
        return of(name, _noise(config, dataset), is_labelled=False)
    if name in OF_THE_TASK:
        if name == "unused":
            unused = np.setdiff1d(np.arange(len(dataset.train)), np.concatenate(partition.train))
            taken = _choose(config, dataset, unused)
        index = torch.from_numpy(taken)
        train = dataset.train
        return of(name, Samples(train.x[index], train.y[index], train.scale, train.offset), is_labelled=True)
    return of(name, _foreign(config, dataset), is_labelled=False)


def of(name: str, samples: Samples, *, is_labelled: bool) -> Proxy:
    """The public set of these images, with their checksum."""
    digest = hashlib.sha256(samples.x.numpy().tobytes()).digest()
    return Proxy(name, samples, is_labelled, int.from_bytes(digest[:6], "big"))


def _choose(config: RunConfig, dataset: Dataset, candidates: np.ndarray) -> np.ndarray:
    """Equally many candidates per class, none equal to a test image; the remainder goes to random classes."""
    size = config.proxy.size
    rng = seeds.stream(config.seed, "proxy").numpy()
    tests = _images(dataset.test.x)
    labels = dataset.train.y.numpy()
    classes = np.unique(labels[candidates])  # own data may lack some
    wanted = np.full(len(classes), size // max(1, len(classes)))
    wanted[rng.permutation(len(classes))[: size - wanted.sum()]] += 1
    if not len(classes):
        what = f"proxy={config.proxy.name} finds no image that no client holds"
        raise ConfigError(what, where="proxy.name", mend="lower partition.samples, so that clients hold less")
    chosen = []
    for label, number in zip(classes.tolist(), wanted.tolist(), strict=True):
        shuffled = rng.permutation(candidates[labels[candidates] == label])
        fresh = [i for i in shuffled.tolist() if _bytes(dataset.train.x[i]) not in tests][:number]
        if len(fresh) < number:
            name = f"{label} ({dataset.labels[label]})"
            what = f"proxy={config.proxy.name} wants {number} samples of class {name}, there are {len(fresh)}"
            raise ConfigError(
                what, where="proxy.size", mend="lower proxy.size, or lower partition.samples, so that clients hold less"
            )
        chosen += fresh
    return np.sort(np.array(chosen, np.int64))


def _noise(config: RunConfig, dataset: Dataset) -> Samples:
    """Uniform bytes or token ids in the range of the task's; of floats, normal ones of the task's mean and variance."""
    generator = seeds.stream(config.seed, "proxy").torch()
    train = dataset.train
    stored = train.x if len(train) else dataset.test.x  # a server of devices has no training images
    shape = (config.proxy.size, *dataset.shape)
    if stored.is_floating_point():
        mean, std = stored.mean(0), stored.std(0)
        x = mean + std * torch.randn(shape, generator=generator)
    else:
        top = int(stored.max()) + 1 if len(stored) else 256
        x = torch.randint(0, top, shape, generator=generator).to(stored.dtype)
    return Samples(x, _unlabelled(len(x)), train.scale, train.offset)


def _foreign(config: RunConfig, dataset: Dataset) -> Samples:
    """A random subset of another source's training images. Raises ConfigError if it does not fit the task."""
    name, size = config.proxy.name, config.proxy.size
    if name not in sources.SOURCES:
        raise ConfigError(f"there is no proxy '{name}'", where="proxy.name", mend=f"known: {', '.join(names())}")
    if name == config.data.name:
        what = f"proxy={name} is the task's own source: its images are the clients' or the test set's"
        raise ConfigError(what, where="proxy.name", mend="use proxy=held-out or proxy=unused")
    data = config.data
    root = None if data.name == OWN else data.root  # for own data it is the place of these, not of the data sets
    other = sources.load(DataConfig(name=name, root=root, download=data.download, scaling=data.scaling))
    if other.shape != dataset.shape:
        what = f"images of proxy={name} have shape {other.shape}, those of {data.name} {dataset.shape}"
        raise ConfigError(what, where="proxy.name", mend="choose a source of the same shape, or proxy=held-out")
    if size > len(other.train):
        what = f"proxy.size = {size}, but {name} has {len(other.train)} training images"
        raise ConfigError(what, where="proxy.size", mend="lower proxy.size")
    rng = seeds.stream(config.seed, "proxy").numpy()
    index = torch.from_numpy(np.sort(rng.permutation(len(other.train))[:size]))
    x = other.train.x[index]
    if shared := _images(x) & (_images(dataset.test.x) | _images(dataset.train.x)):
        what = f"{len(shared)} images of proxy={name} are also in {data.name}"
        raise ConfigError(what, where="proxy.name", mend="choose another source: it must not hold the task's data")
    return Samples(x, _unlabelled(size), other.train.scale, other.train.offset)


def _unlabelled(size: int) -> torch.Tensor:
    return torch.full((size,), -1)


def _images(x: torch.Tensor) -> set[bytes]:
    return set(map(_bytes, x))


def _bytes(image: Iterable[object]) -> bytes:
    assert isinstance(image, torch.Tensor)
    return image.numpy().tobytes()
