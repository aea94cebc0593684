"""`fedkd config`: each value with its source, what differs, and the schema with its comments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from fedkd import config as core
from fedkd import strict_yaml
from fedkd.configuration import compose, naming, reference, resolved, validate
from fedkd.configuration.reference import Key
from fedkd.configuration.resolved import Resolved
from fedkd.errors import ConfigError

_NODES: dict[str, Any] = {
    field.name: field.default_factory for field in fields(core.RunConfig) if is_dataclass(field.default_factory)
}


@dataclass(frozen=True)
class View:
    """The output as text and, for --json, as a value."""

    text: str
    value: Mapping[str, Any]


def of(action: str, overrides: Sequence[str]) -> View:
    """The output of `fedkd config ACTION OVERRIDE ...`. Raises ConfigError."""
    actions = {"show": show, "check": check, "diff": diff, "schema": schema_of}
    if action not in actions:
        mend = validate.one_of(action, actions)
        raise ConfigError(f"there is no 'fedkd config {action}'", where="command line", mend=mend)
    return actions[action](overrides)


def show(overrides: Sequence[str]) -> View:
    config = compose.resolve(overrides)
    value = {"config": asdict(config.config), "sources": dict(config.sources), "digest": config.digest()}
    return View(f"{config.to_yaml()}# digest {config.digest()}", value)


def check(overrides: Sequence[str]) -> View:
    digest = compose.resolve(overrides).digest()
    return View(f"ok  config  {digest[:12]}", {"ok": True, "digest": digest})


def diff(sides: Sequence[str]) -> View:
    if len(sides) != 2:
        what = f"'fedkd config diff' takes two configurations, got {len(sides)}"
        raise ConfigError(what, where="command line", mend="name two run folders or YAML files")
    left, right = map(_side, sides)
    differences = resolved.diff(left, right)
    rows = [
        (it.key, _cell(it.left, it.key in left.values()), _cell(it.right, it.key in right.values()))
        for it in differences
    ]
    lines, is_same = _columns(rows), left.digest() == right.digest()
    if is_same:
        lines.append("these affect only where and how fast it runs: equal results" if rows else "no difference")
    return View("\n".join(lines), {"differences": list(map(asdict, differences)), "same_results": is_same})


def _side(argument: str) -> Resolved:
    """The configuration of a run folder, a file, or an override such as preset=fedgen-mnist."""
    written = Path(argument) / "config.yaml"
    return compose.from_yaml_file(written) if written.is_file() else compose.resolve([argument])


def _cell(value: Any, exists: bool) -> str:
    return strict_yaml.write(value) if exists else "-"


def schema_of(overrides: Sequence[str]) -> View:
    """The keys of the nodes that the overrides name, or of all nodes."""
    nodes = _keys(compose.draft(overrides))
    named = {override.partition("=")[0].partition(".")[0] for override in overrides if "=" in override} - {"preset"}
    if unknown := sorted(named - nodes.keys()):
        mend = validate.one_of(unknown[0], nodes)
        raise ConfigError(f"no key begins with '{unknown[0]}'", where="command line", mend=mend)
    rows = [(name, key) for node, keys in nodes.items() for name, key in keys if not named or node in named]
    lines = [(name, f"{key.type} {key.range}".strip(), key.default or "required", key.comment) for name, key in rows]
    value = {"keys": [{**asdict(key), "name": name} for name, key in rows]}
    return View("\n".join(_columns([("key", "type and range", "default", "meaning"), *lines])), value)


def _keys(draft: validate.Draft) -> dict[str, list[tuple[str, Key]]]:
    """The dotted keys of each node; a plain key is a node too."""
    nested = {"partition", "strategy", *_NODES}
    nodes = {key.name: [(key.name, key)] for key in reference.of(core.RunConfig) if key.name not in nested}
    for node in (field.name for field in fields(core.RunConfig) if field.name in nested):
        nodes[node] = [(f"{node}.{key.name}", key) for key in _keys_of(node, draft)]
    return nodes


def _keys_of(node: str, draft: validate.Draft) -> Iterator[Key]:
    if node == "partition":
        from fedkd.data import partition

        yield from reference.of(partition.known()[draft.name("partition")])
    elif node == "strategy":
        yield from reference.of(core.AlgorithmConfig)
        names = naming.halves(draft.values["strategy"])
        if reference.may_disagree(*names):
            validate.halves(*names)
        yield from reference.of_algorithm(*names)
    else:
        yield from reference.nested(_NODES[node])


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
