"""Finds algorithms: the modules of the packages `strategies` and `clients`, and installed entry points.

A name from a file or command line must be in these lists; no import follows a path that a user writes.
"""

import importlib
import importlib.util
import inspect
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from fedkd.errors import ConfigError, FedkdError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from fedkd.client import Client
    from fedkd.strategy import Strategy

Half = Literal["strategies", "clients"]  # the name of the package and the end of the entry-point group


def names(half: Half) -> tuple[str, ...]:
    """Names of all server or client halves, sorted; imports none of them."""
    return tuple(sorted({*modules(half), *_entry_points(half)}))


def modules(half: Half) -> dict[str, str]:
    """Name -> module of the halves in our own package. The module `server_distill` has the name `server-distill`."""
    spec = importlib.util.find_spec(half)
    places = (spec.submodule_search_locations if spec else None) or []
    module_names = sorted(module.name for module in pkgutil.iter_modules(places) if not module.name.startswith("_"))
    return {name.replace("_", "-"): f"{half}.{name}" for name in module_names}


def strategy(name: str) -> "type[Strategy[Any]]":
    """The server half of that name. Raises ConfigError."""
    from fedkd.strategy import Strategy

    return _find("strategies", name, Strategy)


def client(name: str) -> "type[Client]":
    """The client half of that name. Raises ConfigError."""
    from fedkd.client import Client

    return _find("clients", name, Client)


def _find(half: Half, name: str, base: type) -> Any:
    module = modules(half).get(name)
    if module:
        return _only_class(module, base)
    point = _entry_points(half).get(name)
    if point is None:
        raise ConfigError(f"there is no '{name}' among the {half}", mend="known: " + ", ".join(names(half)))
    cls = _load(point, f"the entry point '{name}' of fedkd.{half}")
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise ConfigError(f"the entry point '{name}' of fedkd.{half} is no subclass of {base.__name__}")
    return cls


def _load(point: "EntryPoint", what: str) -> Any:
    """What an installed package offers. Raises ConfigError: its code may be of another version of fedkd."""
    try:
        return point.load()
    except FedkdError:
        raise
    except Exception as error:  # somebody else's code: anything
        package = point.dist.name if point.dist else point.module
        raise ConfigError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}",
            where=point.value,
            mend=f"'{package}' must go with this version of fedkd: mend it, install another, or uninstall it",
        ) from error


def _only_class(module: str, base: type) -> type:
    classes = [
        value
        for value in vars(importlib.import_module(module)).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module
    ]
    if len(classes) == 1:
        return classes[0]
    listed = ", ".join(value.__name__ for value in classes) or "none"
    raise ConfigError(f"{module} must define one subclass of {base.__name__}, found {listed}")


@cache
def _entry_points(half: Half) -> "dict[str, EntryPoint]":
    from importlib import metadata  # late: it takes a tenth of an error's time

    return {point.name: point for point in metadata.entry_points(group=f"fedkd.{half}")}
