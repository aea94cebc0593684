"""A user's own data: a folder of images by class, or arrays, checked against the agreed form."""

import math
from pathlib import Path

import numpy as np

from fedkd import seeds
from fedkd.data import arrays, image_folder
from fedkd.data.image_spec import ImageSpec, OwnData, OwnDataError, Pair
from fedkd.data.user_data import held_out

_SHARD = ("data.npz", "data.safetensors")  # the file to read in a folder


def read(path: Path, spec: ImageSpec) -> OwnData:
    """A folder of images by class, a .npz or .safetensors file, or a folder with such a file. Raises OwnDataError."""
    path = path.expanduser()
    path = next((path / name for name in _SHARD if (path / name).is_file()), path)
    if path.is_dir():
        data = image_folder.read(path, spec)
    elif path.is_file() and path.suffix.lower() in arrays.SUFFIXES:
        return arrays.read(path, spec)
    else:
        what = "is neither a folder nor a .npz or .safetensors file" if path.exists() else "is not there"
        raise OwnDataError(
            f"the data path {what}",
            public="it is not there",
            where=str(path),
            mend="name a folder of images by class, or a .npz or .safetensors file: docs/data.md",
        )
    for x, _ in filter(None, data):
        spec.check_pixels(x, str(path))
    return data


def test_part(path: Path, spec: ImageSpec) -> Pair:
    """The test images at a path; all images if it has no parts. Raises OwnDataError."""
    data = read(path, spec)
    return data.test or data.train


def of_simulation(path: Path, spec: ImageSpec, test: str | None, share: float) -> tuple[Pair, Pair]:
    """Training and test part, the same for all seeds. Without test data, every 1/share-th image of a class is one."""
    data = read(path, spec)
    if test is not None:
        return data.train, test_part(Path(test), spec)
    if data.test is not None:
        return data.train, data.test
    is_test = held_out(data.train[1], share)
    if not is_test.any():
        raise _too_few(path, "none is left to be a test image")
    return _parted(data.train, is_test)


def of_device(path: Path, spec: ImageSpec, share: float, fewest: int, stream: seeds.Stream) -> tuple[Pair, Pair]:
    """Training and test part of one device's data, with at least `fewest` training images.

    If they have no test part, `share` of them is drawn, in proportion from each class; a class with one image keeps it
    for training. Raises OwnDataError.
    """
    train, test = read(path, spec)
    if test is None:
        train, test = _parted(train, _drawn(train[1], share, stream))
        if share and not len(test[1]):
            raise _too_few(path, "none is left to be a test image")
    if len(train[1]) < fewest:
        raise _too_few(path, f"{len(train[1])} are for training, at least {fewest} are needed (data.min_samples)")
    return train, test


def _drawn(y: np.ndarray, share: float, stream: seeds.Stream) -> np.ndarray:
    """Which samples (N,) are test samples: round(share * N) in all, about `share` per class, by largest remainders."""
    classes, counts = np.unique(y, return_counts=True)
    quota = share * counts
    give = np.floor(quota).astype(int)
    rest = max(math.floor(share * len(y) + 0.5), int(share > 0)) - int(give.sum())
    order = np.argsort(give - quota, kind="stable")
    for at in [at for at in order if give[at] < counts[at] - 1][: max(rest, 0)]:
        give[at] += 1
    is_test, rng = np.zeros(len(y), bool), stream.numpy()
    for label, count, number in zip(classes, counts, give, strict=True):
        is_test[np.flatnonzero(y == label)[rng.permutation(count)[:number]]] = True
    return is_test


def _parted(pair: Pair, is_test: np.ndarray) -> tuple[Pair, Pair]:
    x, y = pair
    return (x[~is_test], y[~is_test]), (x[is_test], y[is_test])


def _too_few(path: Path, what: str) -> OwnDataError:
    return OwnDataError(f"too few images: {what}", public="it has too few images", where=str(path), mend="add images")
