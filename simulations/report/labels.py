"""Labels for runs without a plan: a setting and a method, from the differences of their configurations."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.report import run_tables

Config = Mapping[str, Any]  # dotted key -> value
Key = str  # a configuration, without its seed

_OF_METHOD = ("strategy.", "part.")  # keys that define a method; `parts` does too


@dataclass(frozen=True)
class Place:
    """The position of a run in a grid."""

    setting: str
    method: str


def places(configs: Sequence[Config]) -> dict[Key, Place]:
    """The place of each configuration."""
    methods = _methods(configs)
    names = [name for name in run_tables.differing(configs) if not _is_method(name) and name != "rounds"]
    keys = [name for name in names if not _goes_with_method(name, configs, methods)]
    return {key(config): Place(" ".join(_values(config, keys, keys)), methods[key(config)]) for config in configs}


def key(config: Config) -> Key:
    """A configuration as text, without its seed."""
    return json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True, default=str)


def natural(text: str) -> list[Any]:
    """For sorting: `alpha 0.05` before `alpha 0.1` before `alpha 10`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


def _methods(configs: Sequence[Config]) -> dict[Key, str]:
    """Label of each configuration: strategy, its variant if it has several, then the values that most do not share."""
    kinds: dict[tuple[str, str], list[Config]] = {}
    for config in configs:
        variant = config.get("strategy.variant")
        kinds.setdefault((str(config.get("strategy.setting")), str(variant or "")), []).append(config)
    strategies = [strategy for strategy, _ in kinds]
    labels = {}
    for (strategy, variant), alike in kinds.items():
        label = f"{strategy}/{variant}" if variant and strategies.count(strategy) > 1 else strategy
        names = [name for name in run_tables.differing(alike) if _is_method(name)]
        usual = {name: Counter(str(config.get(name)) for config in alike).most_common(1)[0][0] for name in names}
        for config in alike:
            unusual = [name for name in names if str(config.get(name)) != usual[name]]
            labels[key(config)] = " ".join([label, *_values(config, unusual, names)])
    return labels


def _is_method(name: str) -> bool:
    return name.startswith(_OF_METHOD) or name == "parts"


def _goes_with_method(name: str, configs: Sequence[Config], methods: Mapping[Key, str]) -> bool:
    """Whether the method decides a key: each method has one value, and the values differ. Data never count."""
    if name.startswith(("data.", "partition.")) or name == "clients":
        return False
    values: dict[str, set[str]] = {}
    for config in configs:
        values.setdefault(methods[key(config)], set()).add(str(config.get(name)))
    return len(values) > 1 and all(len(own) == 1 for own in values.values())


def _values(config: Config, names: Sequence[str], among: Sequence[str]) -> list[str]:
    """`alpha 0.1`; names of groups as they are: `mnist`."""
    shorts = [name.rpartition(".")[2] for name in among or names]
    texts = []
    for name in names:
        group, _, last = name.rpartition(".")
        if name not in config:
            continue
        value = "none" if config[name] is None else config[name]
        is_float = isinstance(value, float)
        value = Path(value).name if name == "data.root" else value
        text = value if isinstance(value, str) else f"{value:g}" if is_float else json.dumps(value)
        label = "" if last in ("name", "root") else (last if shorts.count(last) == 1 or not group else name)
        texts.append(f"{label} {text}".strip())
    return texts
