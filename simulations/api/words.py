"""What a caller gives in Python, as the words of a command line: one grammar for both. Free of torch.

An object where a name would stand is registered in this session, under its own name or the one it has already.
"""

import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedkd import extensions, strict_yaml
from fedkd.configuration import compose
from fedkd.errors import ConfigError

WHERE = "Python"
_KINDS: Mapping[str, extensions.Kind] = {
    "strategy": "strategy",
    "strategy.client": "client",
    "data": "data",
    "partition": "partition",
    "students": "student",
}
_Named = dict[tuple[extensions.Kind, str], object]  # the objects of one call


def of(given: Sequence[object], values: Mapping[str, object], *, grid: bool = False) -> list[str]:
    """The words of positional arguments, then of keywords, which replace the same keys of a mapping.

    `grid`: a list is the values that a comparison goes through; else it is one value. Raises ConfigError.
    """
    replaced = tuple(f"{key}{end}" for key in values for end in ("=", "."))
    named: _Named = {}
    words = [word for item in given for word in _of_argument(item, replaced, named)]
    return [*words, *(f"{key}={_text(key, value, named, grid=grid)}" for key, value in values.items())]


def register(objects: Mapping[str, object]) -> None:
    """Make objects known as a run would that got them: `students=MyNet`. Raises ConfigError."""
    for key, value in objects.items():
        if key not in _KINDS or not _is_object(value):
            mend = f"objects go to {', '.join(_KINDS)}"
            raise ConfigError(f"{key} = {value!r} is no object of a session", where=WHERE, mend=mend)
        _name(key, value, {})


def _of_argument(item: object, replaced: tuple[str, ...], named: _Named) -> Iterator[str]:
    if isinstance(item, str):
        yield from [item] if os.path.exists(item) else _split(item)
    elif isinstance(item, os.PathLike):
        yield os.fspath(item)
    elif isinstance(item, Mapping):
        yield from (word for word in _of_mapping(item, named) if not word.startswith(replaced))
    else:
        mend = "give words like 'rounds=20', the path of a YAML file, a mapping, or keywords"
        raise ConfigError(f"{item!r} is no part of a configuration", where=WHERE, mend=mend)


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        mend = "quote as in a shell, or use keywords: students={'mlp': 0.5}"
        raise ConfigError(f"cannot read {line!r}: {error}", where=WHERE, mend=mend) from None


def _of_mapping(config: Mapping[str, Any], named: _Named) -> Iterator[str]:
    """A nested mapping, such as `Run.config`. Its strategy is chosen by name, so that the name stays."""
    for key, value in config.items():
        chosen = value.get("setting") if key == "strategy" and isinstance(value, Mapping) else None
        if chosen in compose.options("strategy"):
            yield f"strategy={chosen}"
            kept = {name: own for name, own in value.items() if name not in ("setting", "name", "client")}
            yield from (f"strategy.{name}={_text(name, own, named)}" for name, own in kept.items())
        elif isinstance(value, Mapping) and value and key not in compose.GROUPS:
            yield from (f"{key}.{word}" for word in _of_mapping(value, named))
        else:
            yield f"{key}={_text(key, value, named)}"


def _text(key: str, value: object, named: _Named, *, grid: bool = False) -> str:
    if grid and isinstance(value, list | tuple | range):
        return ",".join(_text(key, one, named) for one in value)
    return strict_yaml.write(_plain(key, value, named))


def _plain(key: str, value: object, named: _Named) -> Any:
    """A value as YAML holds it: numbers of numpy and torch, and objects by their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if key in _KINDS and _is_object(value):
        return _name(key, value, named)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{key}.{name}", own, named) for name, own in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(key, own, named) for own in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    mend = f"give numbers, text, lists or mappings; {', '.join(_KINDS)} take objects"
    raise ConfigError(f"{key} is a {type(value).__name__}", where=WHERE, mend=mend)


def _is_object(value: object) -> bool:
    return callable(value) or type(value).__name__ == "Data"


def _name(key: str, value: Any, named: _Named) -> str:
    """The name of an object, registered if it is not yet. Raises ConfigError if another of this call has its name."""
    kind = _KINDS[key]
    if known := next((item.name for item in extensions.registered(kind) if item.value is value), ""):
        return known
    name = _own_name(key, value)
    if named.setdefault((kind, name), value) is not value:
        mend = f"name them: @fedkd.register.{kind}('{name}-2')"
        raise ConfigError(f"two objects for {key} are called '{name}'", where=WHERE, mend=mend)
    make = _student(value) if kind == "student" else _data(value) if kind == "data" else value
    extensions.register(kind, name, make)
    return name


def _own_name(key: str, value: Any) -> str:
    """`MyNet` -> `my-net`; with `my-` before it if fedkd or a file has that name."""
    written = getattr(value, "__name__", f"my-{type(value).__name__}")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", written).lower()
    name = re.sub(r"[^a-z0-9_-]", "", name).lstrip("0123456789_-")[:40] or "own"
    kind = _KINDS[key]
    mine = {item.name for item in extensions.registered(kind) if item.origin == extensions.SESSION}
    others = set(compose.options(key)) if key in compose.GROUPS else set(extensions.names(kind))
    return name if name not in others - mine else f"my-{name}"


def _data(value: Any) -> Callable[[Any], Any]:
    return value if callable(value) else lambda root: value


def _student(make: Any) -> Callable[[Any, Any], Any]:
    """A function of (shape, classes), from one of these or from one that needs no arguments. Raises ConfigError."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(make, torch.nn.Module):
        mend = "give its class, or a function (shape, classes) that makes one"
        raise ConfigError(
            f"students is one {type(make).__name__}, and every client needs its own", where="students", mend=mend
        )
    signature = inspect.signature(make)
    if "shape" not in signature.parameters and _takes(signature):
        return lambda shape, classes: make()
    if not _takes(signature, (), 0):
        mend = "it takes (shape, classes), or nothing: students=lambda shape, classes: MyNet(...)"
        raise ConfigError(f"{make.__name__}{signature} cannot make a student", where="students", mend=mend)
    return make  # type: ignore[no-any-return]


def _takes(signature: inspect.Signature, *arguments: object) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True
