"""A resolved configuration, complete and checked, with each value's source; its text, hash and differences."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedkd import extensions, strict_yaml
from fedkd.config import BorderConfig, DataConfig, RunConfig, TrainConfig
from fedkd.extensions import UserFile

DEFAULT = "default (schema)"

# Where and how fast a run executes: two runs with equal ledgers may differ in any of these.
# `engine.deadline` is not among them: it decides which clients are late.
MACHINE_FACTS = frozenset(f"engine.{key}" for key in ("name", "workers", "address")) | frozenset(
    {"checkpoint.every", "checkpoint.keep", "data.root", "data.download", "track"}
)
NAMES = frozenset({"strategy.setting"})  # names, which do not affect results either

_NEW_IN_TRAIN = (*("nesterov", "beta1", "beta2", "schedule", "warmup", "lr_step", "augment", "cutout", "noise"),)
# Keys newer than existing runs, with their defaults: only other values enter the hash.
YOUNGER = {
    f"data.{key}": getattr(DataConfig(), key)
    for key in ("labels", "shape", "mean", "std", "resize", "test", "test_share", "min_samples", "label", "users")
}
YOUNGER |= {"students.stem": "standard", "students.train": "all", "students.weights": None}
YOUNGER |= {"privacy.label_epsilon": None, "privacy.size_step": 1, "evaluate.clients": 0, "evaluate.metrics": []}
YOUNGER |= {f"train.{key}": getattr(TrainConfig(), key) for key in _NEW_IN_TRAIN}
YOUNGER |= {f"border.{key}": value for key, value in dataclasses.asdict(BorderConfig()).items()}


@dataclass(frozen=True)
class Resolved:
    """`sources`: dotted key -> where its value comes from. `choices`: group -> the chosen option of conf.

    `code`: the user's files that the process had executed; wherever this value is unpickled, they are executed first.
    `session`: `kind name` -> hash of each object of a Python session that the configuration names.
    """

    code: tuple[UserFile, ...]
    config: RunConfig
    sources: Mapping[str, str]
    choices: Mapping[str, str]
    session: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, sources: Mapping[str, str], choices: Mapping[str, str]) -> "Resolved":
        """With the source of every value; unwritten values come from the schema."""
        every = {key: _source(key, sources) for key in flat(dataclasses.asdict(config))}
        return cls(extensions.files(), config, every, dict(choices), dict(_session(config)))

    def values(self) -> dict[str, Any]:
        """Dotted key -> value, in the order of the schema."""
        return flat(dataclasses.asdict(self.config))

    def to_yaml(self) -> str:
        """Text from which `fedkd run` restores this configuration; each value has its source as a comment."""
        lines = list(_lines(dataclasses.asdict(self.config)))
        width = max(len(text) for text, _ in lines)
        sources = {key: " ".join(source.split()) for key, source in self.sources.items()}
        return "".join(f"{text:<{width}}  # {sources[key]}\n" if key else f"{text}\n" for text, key in lines)

    def digest(self) -> str:
        """SHA-256 (hex) of the user's files and of all values but MACHINE_FACTS, NAMES and YOUNGER defaults."""
        facts = MACHINE_FACTS - {"data.root"} if self.config.data.name == "own" else MACHINE_FACTS  # own: which data
        every = {key: value for key, value in self.values().items() if key not in facts | NAMES}
        decisive = {key: value for key, value in every.items() if key not in YOUNGER or value != YOUNGER[key]}
        decisive |= {f"code.{file.name}": file.sha256 for file in self.code}
        decisive |= {f"session.{name}": sha256 for name, sha256 in self.session.items()}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """A value in which two configurations differ; None also if one lacks the key."""

    key: str
    left: Any
    right: Any


def diff(left: Resolved, right: Resolved) -> list[Difference]:
    """Where two configurations differ, in the order of the schema."""
    a, b = left.values(), right.values()
    return [
        Difference(key, a.get(key), b.get(key))
        for key in {**a, **b}
        if key not in a or key not in b or a[key] != b[key]
    ]


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted key -> value."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return leaves


def _session(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What a configuration names that a Python session has registered, each with its hash."""
    students = [config.students.name, *(config.students.mix or ())]
    named: dict[extensions.Kind, list[Any]] = {
        "student": students,
        "data": [config.data.name],
        "partition": [config.partition["name"]],
        "strategy": [config.strategy["name"]],
        "client": [config.strategy.get("client")],
    }
    for kind, names in named.items():
        for name in sorted(set(filter(None, names))):
            if sha256 := extensions.session_hash(kind, name):
                yield f"{kind} {name}", sha256


def _source(key: str, sources: Mapping[str, str]) -> str:
    """The source of a value, or of the mapping it was part of."""
    while key and key not in sources:
        key = key.rpartition(".")[0]
    return sources.get(key, DEFAULT)


def _lines(node: Mapping[str, Any], prefix: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    """Lines of YAML, each with the key of its value, which is empty for a heading."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{strict_yaml.write(key)}:", ""
            yield from _lines(value, f"{prefix}{key}.", indent + "  ")
        else:
            yield f"{indent}{strict_yaml.write(key)}: {strict_yaml.write(value)}", prefix + key
