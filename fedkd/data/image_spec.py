"""The form that all images of a run share, and the errors for data that differ from it. Free of torch."""

import difflib
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fedkd.config import DataConfig
from fedkd.errors import DataError, FedkdError

OWN = "own"
TABLES = (".csv", ".parquet")
MOST_SAMPLES = 1_000_000
MOST_BYTES = 1 << 33  # of images in memory, 8 GiB: more than one device has
_MOST_SIDE = 4096  # pixels
_MOST_LABELS = 10_000

Pair = tuple[np.ndarray, np.ndarray]  # images (N, channels, height, width) uint8, labels (N,) int64 from 0


class OwnData(NamedTuple):
    """The data at a path; `test` is None if they have no test part."""

    train: Pair
    test: Pair | None


class OwnDataError(DataError):
    """Own data that cannot be used. The message is for their owner; others may see only `public`."""

    def __init__(self, what: str, *, public: str, where: str = "", mend: str = "") -> None:
        self.public = public
        super().__init__(what, where=where, mend=mend)


def public_reason(error: FedkdError) -> str:
    """Why a device cannot join, safe for others: no path, no file name, no class name, no count."""
    return error.public if isinstance(error, OwnDataError) else "its data or configuration cannot be used"


def too_many(where: str) -> OwnDataError:
    """The error for more images than a process may hold."""
    return OwnDataError(
        f"there are more than {MOST_SAMPLES:,} images, or {MOST_BYTES >> 30} GiB of them",
        public="it is larger than fedkd reads",
        where=where,
        mend="take fewer or smaller images",
    )


@dataclass(frozen=True)
class ImageSpec:
    """The label map, the shape and the scaling of all images of a run."""

    source: str  # data.name
    labels: tuple[str, ...]  # in the order of their numbers
    shape: tuple[int, int, int]  # channels, height, width
    top: int  # the byte that is 1 after scaling to 0..1
    scale: tuple[float, ...]  # per channel: value = byte * scale + offset
    offset: tuple[float, ...]
    resize: Literal["refuse", "fit"]

    def number(self, name: str, where: str) -> int:
        """The label of a class name, or of its number if no name is one. Raises OwnDataError for unknown classes."""
        known = {unicodedata.normalize("NFC", label): number for number, label in enumerate(self.labels)}
        name = unicodedata.normalize("NFC", name)  # some file systems separate letters and accents
        if not any(label.isdecimal() for label in known):
            known |= {str(number): number for number in range(len(self.labels))}
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, self.labels, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        shown = ", ".join(self.labels[:20]) + (", ..." if len(self.labels) > 20 else "")
        raise OwnDataError(
            f"the class '{name}' is unknown",
            public="it holds a class that is not in the label map",
            where=where,
            mend=f"{meant}name it as the run's label map does: {shown}",
        )

    def numbers(self, y: np.ndarray, where: str) -> np.ndarray:
        """Labels (N,) as int64, given as whole numbers or as class names. Raises OwnDataError."""
        if y.dtype.kind == "U":
            names, inverse = np.unique(y, return_inverse=True)
            return np.array([self.number(str(name), where) for name in names], np.int64)[inverse.reshape(-1)]
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.labels):
            raise OwnDataError(
                f"the labels go from {y.min()} to {y.max()}, agreed are 0 to {len(self.labels) - 1}",
                public="it holds a class that is not in the label map",
                where=where,
                mend="count labels from 0 in the order of the run's label map",
            )
        return y.astype(np.int64)

    def check_pixels(self, x: np.ndarray, where: str) -> None:
        """Raises OwnDataError for bytes above `top`, which are brighter than white."""
        if len(x) and int(x.max()) > self.top:
            raise OwnDataError(
                f"the pixels go up to {x.max()}, those of {self.source} to {self.top}",
                public="its pixels have another range than agreed",
                where=where,
                mend=f"scale them to 0..{self.top}, or agree on data=own",
            )


def of_own(config: DataConfig) -> ImageSpec:
    """The agreed form of own data, from a configuration without `problems`."""
    assert config.labels
    assert config.shape
    channels, height, width = config.shape
    unknown = [0.5] * channels  # for scaling=symmetric, which does not use them
    scale, offset = scaling(config.scaling, tuple(config.mean or unknown), tuple(config.std or unknown), 255)
    return ImageSpec(OWN, tuple(config.labels), (channels, height, width), 255, scale, offset, config.resize)


def scaling(
    kind: str, mean: tuple[float, ...], std: tuple[float, ...], top: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset per channel, for value = byte * scale + offset; `mean` and `std` are those of byte / top."""
    if kind == "symmetric":
        mean = std = (0.5,) * len(mean)
    return tuple(1 / (top * s) for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True))


def are_images(config: DataConfig) -> bool:
    """Whether own data are images: they have a shape of three numbers, and are no table."""
    return config.label is None and (config.shape is None or len(config.shape) == 3)


def problems(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Keys of `data` that no samples can satisfy, each with a way to mend it."""
    if config.name != OWN:
        for key in ("labels", "shape", "mean", "std", "test", "label", "users"):
            if getattr(config, key) is not None:
                yield key, f"belongs to data=own; {config.name} has its own: use null"
        return
    if config.label is None and config.root is not None and config.root.lower().endswith(TABLES):
        yield "label", "name the column of the table that holds the classes: data.label=COLUMN"
        return
    if not are_images(config):
        if config.labels is not None:
            yield from _label_problems(config.labels)
        if (config.mean is None) != (config.std is None):
            yield "std" if config.std is None else "mean", "give data.mean and data.std, or neither"
        yield from _scaling_problems(config)
        return
    yield from _label_problems(config.labels)
    if config.users is not None:
        yield "users", "names a column of a table, or an array beside tables, signals or token ids: use null"
    if config.shape is None:
        yield "shape", "give the images' channels, height and width: data.shape='[3, 32, 32]'"
    elif len(config.shape) != 3 or config.shape[0] not in (1, 3) or not 1 <= max(config.shape[1:]) <= _MOST_SIDE:
        yield "shape", f"must be channels (1 grey, 3 colour), height and width of at most {_MOST_SIDE} pixels"
    yield from _scaling_problems(config)


def _label_problems(labels: list[str] | None) -> Iterator[tuple[str, str]]:
    if labels is None:
        yield "labels", "give the names of the classes in the order of their numbers: data.labels='[cat, dog]'"
    elif not 2 <= len(labels) <= _MOST_LABELS:
        yield "labels", f"must be 2 to {_MOST_LABELS} names"
    elif len({unicodedata.normalize("NFC", label) for label in labels}) < len(labels):
        yield "labels", "no name may occur twice"
    elif not all(label.strip() == label and label.isprintable() and label for label in labels):
        yield "labels", "names must be printable text without spaces around it"


def _scaling_problems(config: DataConfig) -> Iterator[tuple[str, str]]:
    for key in ("mean", "std"):
        values: list[float] | None = getattr(config, key)
        if values is None and config.scaling == "standard" and are_images(config):
            yield key, "own data with data.scaling=standard need it: one number per channel, of pixels scaled to 0..1"
        elif values is not None and config.shape and len(values) != config.shape[0]:
            yield key, f"must be {config.shape[0]} numbers, one per channel of data.shape"
        elif values is not None and not all(map(math.isfinite, values)):
            yield key, "must be finite"
