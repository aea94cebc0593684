"""Strict YAML: plain values, each with its line. No tags, anchors, duplicate keys or interpolation.

Scalars follow YAML 1.2: `1e-3` is a number; `on`, `yes`, `1:30` and dates are text.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fedkd import plain_text
from fedkd.errors import ConfigError

_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|", "~n\0"),
    "tag:yaml.org,2002:bool": (r"true|false", "tf"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
}
_WORDS: dict[str, bool | None] = {"~": None, "null": None, "": None, "true": True, "false": False}
LONGEST = 1 << 20  # characters; a configuration is a page, not a data set


@dataclass(frozen=True)
class Value:
    """A value of a document, and the line (from 1) of it or its key; mappings hold further Values."""

    content: Any  # None, bool, int, float, str, a list of plain values, or dict[str, Value]
    line: int

    @property
    def plain(self) -> Any:
        """The content without lines."""
        if isinstance(self.content, dict):
            return {key: value.plain for key, value in self.content.items()}
        return self.content


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # YAML 1.2 core without octal and hexadecimal numbers: below

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ComposerError(None, None, "anchors and aliases are not allowed", event.start_mark)
        if getattr(event, "tag", None):
            raise ComposerError(None, None, f"the tag {event.tag} is not allowed", event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> ScalarNode:
    # Quoted unless it is a plain word: `read` gives back the same text, on one line.
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII) and text not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _number(dumper: _Dumper, number: float) -> ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(number))


for _tag, (_pattern, _first) in _SCALARS.items():
    _starts = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _starts)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _number)


@lru_cache(maxsize=128)  # a comparison reads the same files for each of its cells
def read(text: str, where: str) -> Value:
    """The one document in `text`, not to be changed. Raises ConfigError at `where:line`; `where` is a file name."""
    if len(text) > LONGEST:
        raise ConfigError(f"the file has {len(text)} characters, at most {LONGEST} are read", where=where)
    try:
        node = _Loader(text).get_single_node()
        return Value({}, 1) if node is None else _value(node, where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"not YAML: {error.problem or error.context}", where=place) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}", where=where) from error
    except RecursionError:
        raise ConfigError("nested too deeply", where=where) from None


def scalar(text: str, where: str) -> Any:
    """A value of the command line. Raises ConfigError."""
    if "${" in text:  # before parsing: `${a}` is no YAML
        raise _interpolation(text, where)
    try:
        return read(text, where).plain if text.strip() else None
    except ConfigError as error:
        raise ConfigError(
            f"cannot read the value '{plain_text.printable(text, 80)}': {error.what}", where=where, mend=error.mend
        ) from error


def write(value: Any) -> str:
    """A value on one line, which `read` gives back exactly."""
    options: dict[str, Any] = {"width": math.inf, "allow_unicode": True, "default_flow_style": True, "sort_keys": False}
    return yaml.dump(value, Dumper=_Dumper, **options).removesuffix("\n").removesuffix("...").strip()


def _value(node: Node, where: str) -> Value:
    line = node.start_mark.line + 1
    if isinstance(node, MappingNode):
        return Value(_mapping(node, where), line)
    if isinstance(node, SequenceNode):
        return Value([_value(item, where).plain for item in node.value], line)
    return Value(_scalar(node, f"{where}:{line}"), line)


def _mapping(node: MappingNode, where: str) -> dict[str, Value]:
    content: dict[str, Value] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        place = f"{where}:{line}"
        if not isinstance(key, ScalarNode):
            raise ConfigError("a key must be text", where=place)
        if "${" in key.value:
            raise _interpolation(key.value, place)
        if key.value in content:
            first = content[key.value].line
            raise ConfigError(f"key '{key.value}' occurs twice, first on line {first}", where=place, mend="keep one")
        content[key.value] = Value(_value(value, where).content, line)
    return content


def _scalar(node: ScalarNode, place: str) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if "${" in text:
        raise _interpolation(text, place)
    if kind == "str":
        return text
    if kind in ("null", "bool"):
        return _WORDS[text]
    try:
        number = int(text) if kind == "int" else float(text.replace(".inf", "inf").replace(".nan", "nan"))
        is_finite = math.isfinite(number)
    except (ValueError, OverflowError):  # an integer of hundreds of digits
        is_finite = False
    if not is_finite:
        raise ConfigError(f"{text[:20]} is not a finite number", where=place, mend="write a finite number")
    return number


def _interpolation(text: str, where: str) -> ConfigError:
    return ConfigError(f"'{text}' looks like an interpolation", where=where, mend="${...} is refused: write the value")
