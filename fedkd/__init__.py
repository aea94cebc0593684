"""fedkd: federated knowledge distillation. This package is the vocabulary and the mathematics."""

import importlib
from typing import Any

__version__ = "0.1.0"

_NOUNS = {  # found on first use: `import fedkd` loads nothing
    "Client": "client",
    "Data": "data.user_data",
    "Engine": "engine",
    "Payload": "payload",
    "Problem": "problem",
    "Strategy": "strategy",
    "Student": "student",
    "load_runs": "record.ledger",
}


def __getattr__(name: str) -> Any:
    if name == "register":
        return importlib.import_module("fedkd.register")
    if name in _NOUNS:
        return getattr(importlib.import_module(f"fedkd.{_NOUNS[name]}"), name)
    raise AttributeError(f"module 'fedkd' has no attribute '{name}'")
