"""Where a student starts: parts that are never trained, and entries from a file (docs/students.md)."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedkd.errors import ConfigError, DataError
from fedkd.student import Student

LARGEST = 1 << 32  # bytes of a file


def frozen(make: Callable[[], Student], train: str | Sequence[str]) -> Student:
    """A student of which only some entries are trained: `all`, `head`, or those that fit a pattern (`layer4.*`).

    The others are no entries: they do not travel, and stay as the run's stream or a file made them. Raises ConfigError.
    """
    student = make()
    if train == "all":
        return student
    patterns = ["head.*"] if train == "head" else [train] if isinstance(train, str) else list(train)
    names = list(student.learnable)
    chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = sorted({name.rpartition(".")[0] for name in names})
            mend = f"its layers: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
            raise ConfigError(f"no entry of the student fits '{pattern}'", where="students.train", mend=mend)
    student.freeze(frozenset(names) - chosen)
    return student


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DataError."""
    place, mend = str(path), "write it with safetensors.torch.save_file(model.state_dict(), FILE)"
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"the file has more than {LARGEST >> 30} GiB", where=place)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=place, mend=mend) from error
    except SafetensorError as error:
        raise DataError(f"is no safetensors file: {error}", where=place, mend=mend) from error


def load(student: Student, entries: Mapping[str, Tensor]) -> None:
    """Copy a file's tensors in, by the names of the module's own state_dict; a head of another size keeps its own.

    Raises DataError, which names what is missing, too much, of another shape, or not finite.
    """
    own = {name: entry for name, entry in student.module.state_dict().items() if entry.is_floating_point()}
    given = {name: entry for name, entry in entries.items() if not name.endswith("num_batches_tracked")}
    head = {name for name in own if name.startswith(f"{student.head_name}.")}
    odd = [f"{name} is missing" for name in own if name not in given and name not in head]
    odd += [f"{name} is not the student's" for name in given if name not in own]
    for name in own.keys() & given.keys():
        shape, has = tuple(own[name].shape), tuple(given[name].shape)
        if shape != has and name not in head:
            odd.append(f"{name} has shape {list(has)}, the student's {list(shape)}")
        elif not given[name].is_floating_point() or not bool(torch.isfinite(given[name]).all()):
            odd.append(f"{name} holds values that are no finite numbers")
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        mend = "use a file of this architecture, saved from its state_dict()"
        raise DataError(f"the entries do not fit the student: {odd[0]}{more}", where="students.weights", mend=mend)
    takes_head = all(name in given and given[name].shape == own[name].shape for name in head)  # whole or not at all
    with torch.no_grad():
        for name, entry in own.items():
            if name not in head or takes_head:
                entry.copy_(given[name])
