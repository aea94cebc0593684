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
    each.name: each.default_factory for each in fields(core.RunConfig) if is_dataclass(each.default_factory)
}


@dataclass(frozen=True)
class View:
    """An answer as text and, with --json, as a value."""

    text: str
    value: Mapping[str, Any]


def of(action: str, words: Sequence[str]) -> View:
    """What `fedkd config ACTION WORDS` shows. Raises ConfigError."""
    plays = {"show": show, "check": check, "diff": diff, "schema": schema_of}
    if action not in plays:
        mend = validate.one_of(action, plays)
        raise ConfigError(f"there is no 'fedkd config {action}'", where="command line", mend=mend)
    return plays[action](words)


def show(words: Sequence[str]) -> View:
    found = compose.resolve(words)
    value = {"config": asdict(found.config), "sources": dict(found.sources), "digest": found.digest()}
    return View(f"{found.to_yaml()}# digest {found.digest()}", value)


def check(words: Sequence[str]) -> View:
    digest = compose.resolve(words).digest()
    return View(f"ok  config  {digest[:12]}", {"ok": True, "digest": digest})


def diff(words: Sequence[str]) -> View:
    if len(words) != 2:
        what = f"'fedkd config diff' takes two configurations, got {len(words)}"
        raise ConfigError(what, where="command line", mend="name two run folders or YAML files")
    left, right = (_side(word) for word in words)
    found = resolved.diff(left, right)
    rows = [(d.key, _cell(d.left, d.key in left.values()), _cell(d.right, d.key in right.values())) for d in found]
    is_same = left.digest() == right.digest()
    note = (
        ["these change only where and how fast it runs: equal results" if found else "no difference"] if is_same else []
    )
    value = {"differences": [asdict(difference) for difference in found], "same_results": is_same}
    return View("\n".join([*_columns(rows), *note]), value)


def _side(word: str) -> Resolved:
    """A run folder, a file, or an override such as preset=fedgen-mnist."""
    written = Path(word) / "config.yaml"
    return compose.from_yaml_file(written) if written.is_file() else compose.resolve([word])


def _cell(value: Any, exists: bool) -> str:
    return strict_yaml.write(value) if exists else "-"


def schema_of(words: Sequence[str]) -> View:
    """The keys of the nodes that the overrides name, or of all."""
    draft = compose.draft(words)
    wanted = {word.partition("=")[0].partition(".")[0] for word in words if "=" in word} - {"preset"}
    nodes = _keys(draft)
    if unknown := sorted(wanted - nodes.keys()):
        raise ConfigError(
            f"no key begins with '{unknown[0]}'", where="command line", mend=validate.one_of(unknown[0], nodes)
        )
    rows = [(name, key) for node, keys in nodes.items() for name, key in keys if not wanted or node in wanted]
    lines = [(name, f"{key.type} {key.range}".strip(), key.default or "required", key.comment) for name, key in rows]
    value = {"keys": [{**asdict(key), "name": name} for name, key in rows]}
    return View("\n".join(_columns([("key", "type and range", "default", "meaning"), *lines])), value)


def _keys(draft: validate.Draft) -> dict[str, list[tuple[str, Key]]]:
    """Node -> its dotted keys; a plain key is its own node."""
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
