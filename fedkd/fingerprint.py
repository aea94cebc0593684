"""A hash of an object of a Python session: of its code, and of what that refers to. Free of torch.

A run that was given a class or data has this hash in its configuration's digest, and goes on only with the same.
Installed packages count by name, as they do for a file behind `--py`.
"""

import functools
import hashlib
import pickle
import secrets
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

_OURS = ("fedkd", "strategies", "clients", "simulations")  # run.json records their code
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_PROCESS = secrets.token_hex()
_NO_CODE = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"}


def of(value: Any) -> str:
    """SHA-256 (hex), the same in every process of one Python version.

    An object that can be neither looked into nor pickled has a hash that no other process gives.
    """
    sha = hashlib.sha256(str(sys.version_info[:2]).encode())
    for part in _parts(value, {}):
        sha.update(part)
        sha.update(b"\0")
    return sha.hexdigest()


def _parts(value: Any, known: dict[int, Any]) -> Iterator[bytes]:
    """Bytes that tell the value from others. `known`, by id, keeps what was visited alive and ends circles."""
    kind = type(value).__qualname__
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{kind} {value!r}".encode()
        return
    if id(value) in known:
        yield b"seen before"
        return
    known[id(value)] = value
    yield kind.encode()
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a tensor
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, ModuleType):
        yield value.__name__.encode()
    elif isinstance(value, type | FunctionType | BuiltinFunctionType) and _is_installed(value):
        yield f"{value.__module__} {value.__qualname__}".encode()
        for cell in _cells(value):
            yield from _parts(cell, known)
    else:
        for part in _inside(value):
            yield from _parts(part, known)


def _inside(value: Any) -> list[Any]:
    """What an object is made of."""
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_consts, value.co_names, value.co_varnames, value.co_exceptiontable]
    if isinstance(value, FunctionType):
        used = {name: value.__globals__.get(name) for name in sorted(_names(value.__code__))}
        return [value.__code__, value.__defaults__, value.__kwdefaults__, _cells(value), used]
    if isinstance(value, staticmethod | classmethod | property):
        return [getattr(value, name, None) for name in ("__func__", "fget", "fset")]
    if isinstance(value, type):
        own = {name: part for name, part in sorted(vars(value).items()) if name not in _NO_CODE}
        return [value.__qualname__, list(value.__bases__), own]
    if hasattr(value, "__func__"):  # a bound method
        return [value.__func__, value.__self__]
    if is_dataclass(value):
        return [type(value), *(getattr(value, field.name) for field in fields(value))]
    if hasattr(value, "__dict__") and not _is_installed(type(value)):
        return [type(value), vars(value)]
    try:
        return [pickle.dumps(value)]
    except Exception:  # noqa: BLE001  somebody else's object: anything
        return [_PROCESS, id(value)]


def _names(code: CodeType) -> set[str]:
    """All names that code uses, with the functions inside it."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _cells(value: Any) -> list[Any]:
    """What a function keeps of the functions around it."""
    cells = []
    for cell in getattr(value, "__closure__", None) or ():
        with suppress(ValueError):  # still empty
            cells.append(cell.cell_contents)
    return cells


def _is_installed(value: Any) -> bool:
    name = getattr(value, "__module__", None) or ""
    if name.partition(".")[0] in _OURS or name in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return name != "__main__" and file is not None and str(Path(file)).startswith(_INSTALLED)
