"""Finds algorithms: the modules of the packages `strategies` and `clients`, users' files and installed packages.

A name from a file or command line must be in these lists; no import follows a path that a configuration writes.
"""

import importlib
import importlib.util
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any, Literal

from fedkd import extensions
from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from fedkd.client import Client
    from fedkd.strategy import Strategy

Half = Literal["strategies", "clients"]  # the name of the package and the end of the entry-point group
_KINDS: dict[Half, extensions.Kind] = {"strategies": "strategy", "clients": "client"}


def names(half: Half) -> tuple[str, ...]:
    """Names of all server or client halves, sorted; imports none of them."""
    return tuple(sorted({*modules(half), *extensions.names(_KINDS[half]), *_unnamed(half)}))


def settings() -> dict[str, dict[str, str]]:
    """The strategies of users by name, each as a file of conf/strategy would give it: its two halves."""
    return {name: {"name": name, "client": _client_of(name)} for name in _users("strategies")}


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
    if module := modules(half).get(name):
        return _only_class(module, base)
    cls = _unnamed(half).get(name)
    if extension := extensions.find(_KINDS[half], name):
        cls = extension.value
        if not (inspect.isclass(cls) and issubclass(cls, base)):
            what = f"the {extension.kind} '{name}' of {extension.origin} is no subclass of {base.__name__}"
            raise ConfigError(what, mend=f"derive it from fedkd.{base.__name__}")
    if cls is None:
        raise ConfigError(f"there is no '{name}' among the {half}", mend="known: " + ", ".join(names(half)))
    return cls


def _users(half: Half) -> tuple[str, ...]:
    """The names that users add, without those of our own package."""
    return tuple(name for name in names(half) if name not in modules(half))


def _client_of(strategy: str) -> str:
    """The client half that a user's strategy names; else the one of the same name; else `supervised`."""
    extension = extensions.find("strategy", strategy)
    chosen = extension.options.get("client") if extension else None
    return chosen or (strategy if strategy in names("clients") else "supervised")


def _unnamed(half: Half) -> dict[str, type]:
    """The halves of users' files without a decorator, by their file's name: the only ones of their file."""
    halves, named = {}, {extension.value for extension in extensions.registered(_KINDS[half])}
    for file, module in extensions.modules():
        classes = [value for value in _defined(module) if _is_half(value, half) and value not in named]
        if len(classes) == 1:
            halves[file.stem] = classes[0]
    return halves


def _defined(module: Any) -> list[type]:
    return [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]


def _is_half(value: type, half: Half) -> bool:
    """Whether it derives from Strategy or Client, which are not imported here: they need torch."""
    base = (f"fedkd.{_KINDS[half]}", _KINDS[half].title())
    return any((cls.__module__, cls.__name__) == base for cls in value.__mro__)


def _only_class(module: str, base: type) -> type:
    classes = [value for value in _defined(importlib.import_module(module)) if issubclass(value, base)]
    if len(classes) == 1:
        return classes[0]
    listed = ", ".join(value.__name__ for value in classes) or "none"
    raise ConfigError(f"{module} must define one subclass of {base.__name__}, found {listed}")
