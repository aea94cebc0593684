"""Where loose runs stand: a setting and a method, from what differs in their configurations. Short and unique."""

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

_OF_METHOD = ("strategy.", "part.")  # what makes a method; `parts` too


@dataclass(frozen=True)
class Place:
    """Where a run stands in a grid."""

    setting: str
    method: str


def places(configs: Sequence[Config]) -> dict[Key, Place]:
    """The place of each configuration."""
    methods = _methods(configs)
    keys = [key_ for key_ in run_tables.differing(configs) if not _is_method(key_) and key_ != "rounds"]
    keys = [each for each in keys if not _goes_with_method(each, configs, methods)]
    return {key(config): Place(_setting(config, keys), methods[key(config)]) for config in configs}


def key(config: Config) -> Key:
    """A configuration as text, without its seed."""
    return json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True, default=str)


def natural(text: str) -> list[Any]:
    """For sorting: `alpha 0.05` before `alpha 0.1` before `alpha 10`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


def _methods(configs: Sequence[Config]) -> dict[Key, str]:
    """Strategy, its variant where it has several, then the values that are not those of most runs of these."""
    kinds: dict[tuple[str, str], list[Config]] = {}
    for config in configs:
        variant = config.get("strategy.variant")
        kinds.setdefault((str(config.get("strategy.setting")), str(variant or "")), []).append(config)
    names = [name for name, _ in kinds]
    found = {}
    for (name, variant), alike in kinds.items():
        label = f"{name}/{variant}" if variant and names.count(name) > 1 else name
        keys = [each for each in run_tables.differing(alike) if _is_method(each)]
        usual = {each: Counter(map(str, (config.get(each) for config in alike))).most_common(1)[0][0] for each in keys}
        for config in alike:
            odd = [each for each in keys if str(config.get(each)) != usual[each]]
            found[key(config)] = " ".join([label, *_said(config, odd, keys)])
    return found


def _is_method(each: str) -> bool:
    return each.startswith(_OF_METHOD) or each == "parts"


def _goes_with_method(each: str, configs: Sequence[Config], methods: Mapping[Key, str]) -> bool:
    """Whether a key is the method's doing: each method has one value, and not all the same. Data never is."""
    if each.startswith(("data.", "partition.")) or each == "clients":
        return False
    values: dict[str, set[str]] = {}
    for config in configs:
        values.setdefault(methods[key(config)], set()).add(str(config.get(each)))
    return len(values) > 1 and all(len(found) == 1 for found in values.values())


def _setting(config: Config, keys: Sequence[str]) -> str:
    return " ".join(_said(config, keys, keys))


def _said(config: Config, keys: Sequence[str], among: Sequence[str]) -> list[str]:
    """`alpha 0.1`; names of groups as they are: `mnist`."""
    shorts = [each.rpartition(".")[2] for each in among or keys]
    found = []
    for each in keys:
        group, _, last = each.rpartition(".")
        if each not in config:
            continue
        value = "none" if config[each] is None else config[each]
        is_float = isinstance(value, float)
        value = Path(value).name if each == "data.root" else value
        text = value if isinstance(value, str) else f"{value:g}" if is_float else json.dumps(value)
        label = "" if last in ("name", "root") else (last if shorts.count(last) == 1 or not group else each)
        found.append(f"{label} {text}".strip())
    return found
