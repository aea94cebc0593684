"""The reference of a configuration class, read from its source: key, type, range, default and trailing comment.

It reads halves of algorithms without importing them, so that a typing error is reported without torch.
"""

import ast
import dataclasses
import importlib.util
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedkd import strict_yaml
from fedkd.configuration import plugins

_WORDS = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<", "MinLen": "length >=", "MaxLen": "length <="}
_BASES = ("Strategy", "Client")


@dataclass(frozen=True)
class Key:
    """One key, as text for people."""

    name: str
    type: str  # `float`, `int or null`, `all | head`
    range: str  # `>= 0, <= 1`, or empty
    default: str  # as written in YAML; empty: the key is required
    comment: str


def of(cls: type[Any]) -> list[Key]:
    """The keys of a dataclass, `name` first, inherited ones before its own, without nested dataclasses."""
    keys: dict[str, Key] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            body = _body(inspect.getsource(sys.modules[owner.__module__]), owner.__qualname__)
            keys |= {key.name: key for key in body}
    nested = {f.name for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.default_factory)}
    return sorted((key for key in keys.values() if key.name not in nested), key=lambda key: key.name != "name")


def nested(cls: type[Any]) -> Iterator[Key]:
    """The keys of a dataclass, then those of its nested dataclasses, dotted: `teacher.tau`."""
    yield from of(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(below := field.default_factory):
            assert isinstance(below, type)
            yield from (dataclasses.replace(key, name=f"{field.name}.{key.name}") for key in nested(below))


@cache
def of_half(half: plugins.Half, name: str) -> list[Key] | None:
    """The keys of an algorithm's half without importing it; None if they need an import."""
    source = _source(half, name)
    owners = [node for node in _classes(source) if _base(node) in _BASES]
    if len(owners) != 1:
        return None
    config = next((node for node in owners[0].body if isinstance(node, ast.ClassDef) and node.name == "Config"), None)
    if config is None:
        return []
    inherited = [ast.unparse(base) for base in config.bases]
    is_known = all(base in ("Strategy.Config", "Client.Config") for base in inherited)
    return _body(source, f"{owners[0].name}.Config") if is_known else None


@cache
def traits(strategy: str) -> dict[str, Any]:
    """A server half's class attributes or their defaults, without an import; empty outside our own package."""
    source = _source("strategies", strategy)
    owner = next((node for node in _classes(source) if _base(node) == "Strategy"), None)
    if owner is None:
        return {}
    return {**_common_traits(), **_literals(owner)}


def of_recipe(name: str) -> list[Key]:
    """The keys of a partition without `name` and without an import; of a user's own those that all share."""
    source = _read("fedkd.data.partition_recipes")
    owners = [node.name for node in _classes(source) if _literals(node).get("name") == name]
    keys = {key.name: key for owner in ("Recipe", *owners) for key in _body(source, owner) if key.name != "name"}
    return list(keys.values())


def of_halves(strategy: str, client: str) -> list[Key] | None:
    """The keys of an algorithm without importing its halves; None if they need an import."""
    server, own = of_half("strategies", strategy), of_half("clients", client)
    return None if server is None or own is None else _joined(server, own)


def may_disagree(strategy: str, client: str) -> bool:
    """Whether both halves may declare a shared key differently: their texts differ, or only an import would tell."""
    server, own = of_half("strategies", strategy), of_half("clients", client)
    if server is None or own is None:
        return True
    declared = {key.name: (key.type, key.range, key.default) for key in server}
    return any(declared.get(key.name) not in (None, (key.type, key.range, key.default)) for key in own)


def of_algorithm(strategy: str, client: str) -> list[Key]:
    """`of_halves`, with an import if necessary. Raises ConfigError if there is no such half."""
    server, own = of_half("strategies", strategy), of_half("clients", client)
    server = of(plugins.strategy(strategy).Config) if server is None else server
    return _joined(server, of(plugins.client(client).Config) if own is None else own)


def _joined(server: list[Key], own: list[Key]) -> list[Key]:
    """The keys of both halves. A shared key is listed once, with the server half's comment."""
    return server + [key for key in own if key.name not in {other.name for other in server}]


def _source(half: plugins.Half, name: str) -> str:
    """The text of an algorithm's half; empty if it is not in our own package."""
    module = plugins.modules(half).get(name)
    return _read(module) if module else ""


@cache
def _read(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin is not None else ""


def _classes(source: str) -> list[ast.ClassDef]:
    return [node for node in _statements(source) if isinstance(node, ast.ClassDef)]


@cache
def _common_traits() -> dict[str, Any]:
    return _literals(next(node for node in _classes(_read("fedkd.strategy")) if node.name == "Strategy"))


def _literals(owner: ast.ClassDef) -> dict[str, Any]:
    """Its class attributes that are plain literals."""
    literals = {}
    for node in owner.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
            ):
                literals[name] = value
    return literals


def _base(node: ast.ClassDef) -> str:
    base = node.bases[0] if node.bases else None
    base = base.value if isinstance(base, ast.Subscript) else base  # Strategy[State]
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def _body(source: str, qualname: str) -> list[Key]:
    nodes = _statements(source)
    for part in qualname.split("."):
        nodes = next(node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == part)
    comments = _comments(source)
    fields = (node for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
    return [_key(node, comments) for node in fields if "ClassVar" not in ast.unparse(node.annotation)]


@cache
def _statements(source: str) -> list[ast.stmt]:
    return ast.parse(source).body


@cache
def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def _key(node: ast.AnnAssign, comments: dict[int, str]) -> Key:
    assert isinstance(node.target, ast.Name)
    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    comment = " ".join(comments[line] for line in lines if line in comments)
    ranges = ", ".join(_ranges(node.annotation))
    return Key(node.target.id, _type(node.annotation), ranges, _default(node.value), comment)


def _type(node: ast.expr) -> str:
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{_type(left)} or {_type(right)}"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *_])):
            return _type(kind)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            options = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return " | ".join(strict_yaml.write(ast.literal_eval(option)) for option in options)
        case ast.Subscript(value=ast.Name(id="list"), slice=kind):
            return f"list of {_type(kind)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, kind])):
            return f"dict[str, {_type(kind)}]"
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id="str"):
            return "text"
    return ast.unparse(node)


def _ranges(node: ast.expr) -> Iterator[str]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _WORDS:
            yield f"{_WORDS[call.func.id]} {ast.unparse(call.args[0])}"
        elif isinstance(call, ast.Call) and ast.unparse(call.func) == "Off":
            yield "0 = off"


def _default(node: ast.expr | None) -> str:
    if node is None:
        return ""
    match node:
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Name(id="list"))]):
            return "[]"
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Lambda(body=body))]):
            node = body
    try:
        return strict_yaml.write(ast.literal_eval(node))
    except ValueError:  # an expression: shown as source
        return ast.unparse(node)
