"""The worker process and its encoding: tensors travel as numpy arrays, which Ray shares out of band."""

import functools
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedkd import extensions
from fedkd.engine import Job, Result
from fedkd.extensions import UserFile
from fedkd.payload import Payload
from simulations.engines.inline import JobRunner

T = TypeVar("T")
Packed = tuple[tuple[UserFile, ...], JobRunner]
_ATOMS = frozenset({type(None), bool, int, float, str})


def encode(value: T) -> T:
    """The value with numpy arrays instead of tensors, at any depth of dataclasses and dictionaries."""
    return _map_leaves(value, _array)


def decode(value: T) -> T:
    """The inverse of `encode`. Tensors own their memory: they free Ray's store, and writing to them is safe."""
    return _map_leaves(value, _owned)


def view(value: T) -> T:
    """The inverse of `encode` without a copy: tensors stay in Ray's store. Writing to one ends the process."""
    return _map_leaves(value, _shared)


def packed(site: JobRunner) -> Packed:
    """An encoded site. The user's files come first: unpickling executes them, and the site's classes may be theirs."""
    return extensions.files(), encode(site)


def num_bytes(value: Any) -> int:
    """Bytes of all tensors in a value."""
    sizes = [0]

    def count(leaf: Any) -> Any:
        sizes.append(leaf.nbytes if isinstance(leaf, Tensor) else 0)
        return leaf

    _map_leaves(value, count)
    return sum(sizes)


def _map_leaves(value: Any, convert: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict or isinstance(value, Mapping):
        return {key: _map_leaves(item, convert) for key, item in value.items()}
    if is_dataclass(kind):
        changed = {name: _map_leaves(getattr(value, name), convert) for name in _names(kind)}
        return kind(**changed)  # `replace` costs twice as much
    return convert(value)


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _array(leaf: Any) -> Any:
    return leaf.detach().contiguous().numpy() if isinstance(leaf, Tensor) else leaf


def _owned(leaf: Any) -> Any:
    return torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf


def _shared(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray):
        return leaf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not writable": nothing writes to samples
        return torch.from_numpy(leaf)


class Worker:
    """An actor that holds the site and the payloads of the current run. Jobs are pure, so it may die at any time."""

    def __init__(self, site: Packed) -> None:
        torch.set_num_threads(1)  # bits differ between one and two threads
        self._run = 0
        self._payloads: dict[int, Payload] = {}
        self._site = view(site[1])

    def greet(self) -> int:
        """The process id."""
        return os.getpid()

    def serve(self, site: Packed) -> int:
        """Run jobs at this site from now on."""
        self._site = view(site[1])
        return self.greet()

    def work(
        self, run: int, tasks: Sequence[tuple[Job, int]], forget: Sequence[int], new: Sequence[int], *payloads: Payload
    ) -> list[tuple[Result, float]]:
        """Do a chunk of (job, number of its payload): results, and the seconds each took, coding included.

        `payloads` have the numbers `new`; the worker drops those numbered `forget` afterwards.
        """
        if run != self._run:
            self._run, self._payloads = run, {}
        self._payloads.update(zip(new, map(decode, payloads), strict=True))
        results = [self._do(job, key) for job, key in tasks]
        for key in forget:
            del self._payloads[key]
        return results

    def _do(self, job: Job, key: int) -> tuple[Result, float]:
        start = time.perf_counter()
        result = encode(self._site.run(replace(decode(job), payload=self._payloads[key])))
        return result, time.perf_counter() - start
