"""The name of a strategy for people: that of its setting in conf/strategy, because halves are not unique.

FedProx is FedAvg's server half with another client half; all settings of Flower's strategies have the same halves.
"""

from collections.abc import Mapping
from typing import Any

Node = Mapping[str, Any]  # the keys of `strategy` in a configuration, or of a file of conf/strategy


def halves(node: Node) -> tuple[str, str]:
    """The server half and the client half."""
    return str(node.get("name", "")), str(node.get("client", "supervised"))


def of(node: Node) -> str:
    """The name of a resolved strategy."""
    return str(node.get("setting") or node["name"])


def setting_of(node: Node, known: Mapping[str, Node], chosen: str = "") -> str:
    """The setting in `known` with the same halves as a strategy.

    Of several, it is the one that shares most values with the strategy, text before numbers; of equals, the `chosen`
    one. Without any, the name joins the halves: `fedavg+mine`.
    """
    candidates = [name for name, setting in known.items() if halves(setting) == halves(node)]
    if candidates:
        return min(candidates, key=lambda name: (*_not_shared(known[name], node), name != chosen))
    server, client = halves(node)
    return server if client in ("supervised", server) else f"{server}+{client}"


def _not_shared(setting: Node, node: Node) -> tuple[int, int]:
    """How many values of a setting differ in a strategy: those of text, and all."""
    lacking = [value for key, value in setting.items() if node.get(key) != value]
    return sum(isinstance(value, str) for value in lacking), len(lacking)
