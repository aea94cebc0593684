"""Data of any shape and type, given as arrays: what `fedkd.Data` takes, checks and scales."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.errors import DataError

_MOST_CLASSES = 10_000
_MOST_TOKENS = 10_000_000  # the largest id: a student has an entry for each
_WHERE = "fedkd.Data"


@dataclass(frozen=True, eq=False, init=False)
class Data:
    """Samples with labels, in memory.

    Samples (N, ...) are unsigned bytes (images, (N, channels, height, width)), floats (tables (N, features), signals
    (N, channels, time)) or whole numbers (token ids (N, length)). Labels (N,) are whole numbers from 0, or names.
    """

    train_x: np.ndarray  # uint8, float32 or int64
    train_y: np.ndarray  # (N,) int64
    test_x: np.ndarray | None
    test_y: np.ndarray | None
    labels: tuple[str, ...]
    users: np.ndarray | None  # (N,) int64: whose sample it is, numbered from 0

    def __init__(self, train: Any, test: Any = None, *, labels: Sequence[str] | None = None, users: Any = None) -> None:
        """`train` and `test`: a pair (samples, labels), or a torch Dataset whose items are such pairs.

        Samples and labels are numpy arrays, torch tensors, lists, or the columns of a data frame. Without `test`, a
        share of each class is held out (`data.test_share`). `labels`: names of the classes in the order of their
        numbers. `users`: one entry per training sample, for partition=users. Raises DataError.
        """
        x, y = _pair(train, "train")
        test_x, test_y = _pair(test, "test") if test is not None else (None, None)
        names = _names(labels, [y] if test_y is None else [y, test_y])
        values: Mapping[str, Any] = {
            "train_x": _samples(x, "train"),
            "train_y": _numbers(y, names, "train"),
            "test_x": None if test_x is None else _samples(test_x, "test"),
            "test_y": None if test_y is None else _numbers(test_y, names, "test"),
            "labels": names,
            "users": None if users is None else _users(users, len(y)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        _check_alike(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train_x.shape[1:]

    @property
    def vocabulary(self) -> int:
        """Token ids go from 0 up to this number; 0: the samples are no tokens."""
        if self.train_x.dtype != np.int64:
            return 0
        return 1 + max(int(x.max()) for x in (self.train_x, self.test_x) if x is not None and x.size)

    def split(self, share: float) -> "Data":
        """With a test part: itself, or with every 1/share-th sample of each class held out. Raises DataError."""
        if self.test_x is not None:
            return self
        is_test = held_out(self.train_y, share)
        if not is_test.any():
            mend = "raise data.test_share, or give test samples"
            raise DataError("none is left to be a test sample", where=_WHERE, mend=mend)
        parts = {"train": ~is_test, "test": is_test}
        pairs = {name: (self.train_x[chosen], self.train_y[chosen]) for name, chosen in parts.items()}
        users = None if self.users is None else self.users[~is_test]
        return Data(**pairs, labels=self.labels, users=users)


def held_out(y: np.ndarray, share: float) -> np.ndarray:
    """Which samples (N,) are test samples: every 1/share-th of each class, the same for all seeds."""
    is_test = np.zeros(len(y), bool)
    for label in np.unique(y):
        rank = np.arange((y == label).sum())
        is_test[y == label] = np.floor((rank + 1) * share) > np.floor(rank * share)
    return is_test


def statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation along axis 1 of float samples (N, features, ...); 1 for a constant feature."""
    axes = (0, *range(2, x.ndim))
    std = x.std(axes, dtype=np.float64)
    return tuple(x.mean(axes, dtype=np.float64).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _pair(given: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(given, tuple | list) and len(given) == 2:
        x, y = (_array(part, f"{name}[{at}]") for at, part in enumerate(given))
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, Mapping):
        items = [given[at] for at in range(len(given))]
        if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            raise _refused(f"the items of {name} are no pairs (sample, label)", "give a pair of arrays")
        x, y = np.stack([_array(item[0], name) for item in items]), np.array([_plain(item[1]) for item in items])
    else:
        raise _refused(f"{name} is a {type(given).__name__}", "give a pair (samples, labels) or a torch Dataset")
    if y.dtype.kind == "O" and (odd := [at for at, label in enumerate(y.tolist()) if not isinstance(label, str)]):
        raise _refused(f"label {odd[0]} of {name} is {y.tolist()[odd[0]]!r}", "name every label, or number them all")
    if len(x) != len(y) or y.ndim != 1:
        raise _refused(f"{name} has samples {x.shape} and labels {y.shape}", "give each sample one label")
    if not len(x):
        raise _refused(f"{name} is empty", "put samples into it")
    return x, y


def _array(value: Any, name: str) -> np.ndarray:
    """A numpy array of a tensor, a column, a frame or a list."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    elif hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if np.ma.is_masked(value):
        raise _refused(f"{name} is a masked array", "fill or drop what is masked")
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise _refused(f"{name} is no array: {error}", "give every sample the same shape") from error


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def _samples(x: np.ndarray, name: str) -> np.ndarray:
    if x.ndim < 2 or 0 in x.shape:
        mend = "a table is (samples, features), a signal (samples, channels, time)"
        raise _refused(f"the samples of {name} have shape {x.shape}", mend)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "f":
        if not np.isfinite(x).all():
            row = int(np.argwhere(~np.isfinite(x))[0][0])
            raise _refused(f"sample {row} of {name} holds {_worst(x[row])}", "fill or drop missing values")
        if float(np.abs(x).max()) > float(np.finfo(np.float32).max):
            raise _refused(f"the samples of {name} hold values too large for float32", "scale them")
        return x.astype(np.float32)
    if x.dtype.kind in "iub":
        if x.dtype.kind == "i" and int(x.min()) < 0:
            mend = "token ids begin at 0; of a table, convert them: x.astype('float32')"
            raise _refused(f"the samples of {name} are whole numbers down to {x.min()}", mend)
        if x.ndim != 2 or int(x.max()) > _MOST_TOKENS:
            mend = "images are unsigned bytes (x.astype('uint8')), measurements floats (x.astype('float32'))"
            what = f"the samples of {name} are whole numbers of shape {x.shape}, up to {x.max()}"
            raise _refused(f"{what}: no token ids (N, length) up to {_MOST_TOKENS}", mend)
        return x.astype(np.int64)
    mend = "encode text as token ids and categories as numbers"
    raise _refused(f"the samples of {name} are of type {x.dtype}", mend)


def _worst(sample: np.ndarray) -> str:
    return "NaN" if np.isnan(sample).any() else "an infinite value"


def _names(given: Sequence[str] | None, labels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers."""
    if given is not None:
        names = tuple(map(str, given))
        if len(set(names)) < len(names) or not 2 <= len(names) <= _MOST_CLASSES:
            raise _refused(f"labels has {len(names)} names", f"give 2 to {_MOST_CLASSES} different ones")
        return names
    parts = list(labels)
    if len({y.dtype.kind in "UO" for y in parts}) > 1:
        raise _refused("the labels of train and test are of two kinds", "give both as whole numbers, or both as names")
    values = np.unique(np.concatenate(parts))
    if values.dtype.kind in "UO":
        names = tuple(map(str, values))
    else:
        if values.dtype.kind not in "iub" or int(values.min()) < 0:
            what = f"labels are of type {values.dtype}, from {values.min()}"
            raise _refused(what, "count classes from 0, or name them")
        names = tuple(str(number) for number in range(int(values.max()) + 1))
    if not 2 <= len(names) <= _MOST_CLASSES:
        raise _refused(f"there are {len(names)} classes", f"give 2 to {_MOST_CLASSES}")
    return names


def _numbers(y: np.ndarray, names: tuple[str, ...], name: str) -> np.ndarray:
    if y.dtype.kind in "UO":
        known = {label: number for number, label in enumerate(names)}
        if unknown := sorted({str(label) for label in y.tolist()} - known.keys()):
            raise _refused(f"{name} has the class '{unknown[0]}'", f"known: {', '.join(names[:20])}")
        return np.array([known[str(label)] for label in y.tolist()], np.int64)
    if y.dtype.kind not in "iub" or int(y.min()) < 0 or int(y.max()) >= len(names):
        what = f"the labels of {name} are {y.dtype} from {y.min()} to {y.max()}, of {len(names)} classes"
        raise _refused(what, f"count them from 0 to {len(names) - 1}")
    return y.astype(np.int64)


def _users(given: Any, number: int) -> np.ndarray:
    users = _array(given, "users")
    if users.shape != (number,):
        raise _refused(f"users has shape {users.shape}", f"give one for each of the {number} training samples")
    if any(user is None or user != user for user in users.tolist()):
        raise _refused("some samples have no user", "name the owner of each, or drop these samples")
    numbers: np.ndarray = np.unique(users, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers


def _check_alike(data: Data) -> None:
    if data.test_x is None:
        return
    train, test = data.train_x, data.test_x
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        what = f"train has samples {train.shape[1:]} {train.dtype}, test {test.shape[1:]} {test.dtype}"
        raise _refused(what, "give both the same shape and type")


def _refused(what: str, mend: str) -> DataError:
    return DataError(what, where=_WHERE, mend=mend)
