"""A user's own tables, signals and token ids in a file, for a simulation: what `fedkd.Data` takes, checked as there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedkd.config import DataConfig
from fedkd.data import arrays
from fedkd.data.image_spec import MOST_BYTES, TABLES, too_many
from fedkd.data.user_data import Data
from fedkd.errors import DataError

_Pair = tuple[Any, Any]  # samples, labels


class _Read(NamedTuple):
    train: _Pair
    test: _Pair | None = None
    users: Any = None
    columns: Sequence[str] = ()  # of a table, in their order


def read(path: Path, config: DataConfig) -> Data:
    """The samples of a .npz, .safetensors, .csv or .parquet file; test samples are those of `data.test`, if it is set.

    Raises DataError for a file that cannot be used, and if pandas is not installed for a table.
    """
    found = _read(path.expanduser(), config, config.users)
    test = found.test
    if config.test is not None:
        place = Path(config.test).expanduser()
        other = _read(place, config, None)
        test = other.test or other.train
        if other.columns != found.columns:
            differ = sorted(set(other.columns) ^ set(found.columns)) or other.columns
            raise _refused(f"its columns differ from those of {path}: {', '.join(differ)[:200]}", place, "use the same")
    try:
        data = Data(found.train, test, labels=config.labels, users=found.users)
    except DataError as error:
        raise DataError(error.what, where=str(path), mend=error.mend) from error
    if data.train_x.dtype == np.uint8:
        mend = "save token ids as int64, measurements as float32; images have three numbers in data.shape"
        raise _refused(f"the samples are bytes of shape {list(data.shape)}", path, mend)
    if config.shape is not None and tuple(config.shape) != data.shape:
        what = f"the samples have shape {list(data.shape)}, agreed are {config.shape}"
        raise _refused(what, path, f"set data.shape='{list(data.shape)}'")
    return data


def _read(path: Path, config: DataConfig, users: str | None) -> _Read:
    if not path.is_file():
        mend = "name a .npz, .safetensors, .csv or .parquet file: docs/data.md"
        raise _refused("there is no such file", path, mend)
    if path.suffix.lower() in TABLES:
        return _of_table(path, config, users)
    if path.suffix.lower() not in arrays.SUFFIXES:
        raise _refused("samples that are no images come from .npz, .safetensors, .csv or .parquet", path, "save as one")
    entries = arrays.entries(path)
    if users is not None and users not in entries:
        raise _refused(f"the file holds no array '{users}'", path, "set data.users to the name of one")
    owner = entries.pop(users) if users is not None else None
    parts = {name: arrays.load(entry, path) for name, entry in arrays.parts(entries, path).items()}
    train, test = ("x", "y") if "x" in parts else ("train_x", "train_y"), ("test_x", "test_y")
    return _Read(
        (parts[train[0]], parts[train[1]]),
        (parts[test[0]], parts[test[1]]) if test[0] in parts else None,
        None if owner is None else arrays.load(owner, path),
    )


def _of_table(path: Path, config: DataConfig, users: str | None) -> _Read:
    frame = _frame(path)
    for key, column in (("label", config.label), ("users", users)):
        if column is not None and column not in frame:
            known = ", ".join(map(str, frame.columns))[:200]
            raise _refused(f"there is no column '{column}'", path, f"data.{key} is one of: {known}")
    labels, features = frame[config.label], frame.drop(columns=[config.label])
    if labels.isna().any():
        raise _refused(f"row {int(labels.isna().argmax()) + 1} has no '{config.label}'", path, "drop such rows")
    if config.users in features:
        features = features.drop(columns=[config.users])
    if text := [name for name, kind in features.dtypes.items() if kind.kind not in "iufb"]:
        mend = "encode it as numbers, or leave it out"
        raise _refused(f"column '{text[0]}' is no number", path, mend)
    # Text of several types, such as 1 and "a", has no order.
    y = labels.to_numpy() if labels.dtype.kind in "iub" else labels.astype(str).to_numpy()
    owner = None if users is None else frame[users].astype(str).to_numpy()
    return _Read((features.to_numpy(np.float32, na_value=np.nan), y), None, owner, tuple(map(str, features.columns)))


def _frame(path: Path) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise too_many(str(path))
    try:
        import pandas

        return pandas.read_csv(path) if path.suffix.lower() == ".csv" else pandas.read_parquet(path)
    except ImportError as error:
        raise _refused(f"tables need a library: {str(error)[:200]}", path, "pip install 'fedkd[data]'") from error
    except (OSError, ValueError) as error:
        raise _refused(f"the table cannot be read: {str(error)[:200]}", path, "save it again with pandas") from error


def _refused(what: str, path: Path, mend: str) -> DataError:
    return DataError(what, where=str(path), mend=mend)
