"""fedkd: federated knowledge distillation. This package is the vocabulary, the mathematics, and the face of the rest.

    import fedkd

    run = fedkd.run("strategy=fedgen", data="digits", rounds=30)

The names below `simulations` are handed on here and nowhere else in this package (docs/python-api.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedkd import errors as errors
    from fedkd import register as register
    from fedkd.client import Client as Client
    from fedkd.data.user_data import Data as Data
    from fedkd.engine import Engine as Engine
    from fedkd.payload import Payload as Payload
    from fedkd.problem import Problem as Problem
    from fedkd.record.ledger import load_runs as load_runs
    from fedkd.strategy import Strategy as Strategy
    from fedkd.student import Student as Student
    from simulations.api.front import compare as compare
    from simulations.api.front import iterate as iterate
    from simulations.api.front import load as load
    from simulations.api.front import partition as partition
    from simulations.api.front import run as run
    from simulations.api.run import Run as Run
    from simulations.api.study import Study as Study

__version__ = "0.1.0"

_PLACES = {  # found on first use: `import fedkd` loads nothing
    "Client": "fedkd.client",
    "Data": "fedkd.data.user_data",
    "Engine": "fedkd.engine",
    "Payload": "fedkd.payload",
    "Problem": "fedkd.problem",
    "Strategy": "fedkd.strategy",
    "Student": "fedkd.student",
    "load_runs": "fedkd.record.ledger",
    "Run": "simulations.api.run",
    "Study": "simulations.api.study",
    **dict.fromkeys(("compare", "iterate", "load", "partition", "run"), "simulations.api.front"),
}


_MODULES = ("errors", "register")

if not TYPE_CHECKING:  # a type checker sees the imports above, and no other name

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"fedkd.{name}")
        if name in _PLACES:
            return getattr(importlib.import_module(_PLACES[name]), name)
        raise AttributeError(f"module 'fedkd' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_MODULES})
