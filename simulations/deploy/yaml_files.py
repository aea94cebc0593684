"""Reads small YAML files strictly: only known keys, typed values, all mistakes reported at once.

A dataclass describes the keys of a file, as for a configuration; each mistake names its line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedkd import strict_yaml
from fedkd.configuration import validate
from fedkd.errors import ConfigError, Mistake
from fedkd.strict_yaml import Value


def read(path: Path, what: str, mend: str) -> validate.Draft:
    """The file at `path`. Raises ConfigError; if the file is missing, its folder is no `what`."""
    try:
        content = strict_yaml.read(path.read_text(encoding="utf-8"), str(path)).content
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path.parent} is no {what}: {path.name} is missing", mend=mend) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot be read: {reason}", where=str(path)) from error
    if not isinstance(content, dict):
        raise ConfigError("the file is no mapping of keys", where=str(path), mend="write lines like `port: 8000`")
    sources = dict(_sources(content, (), str(path)))
    plain = {key: value.plain for key, value in content.items()}
    return validate.Draft(plain, {(): str(path), **sources})


def check(
    cls: type[Any], draft: validate.Draft, prefix: validate.Path = (), keys: Sequence[str] | None = None
) -> validate.Checked:
    """The node at `prefix` as a `cls`, or None; and its mistakes. `keys`: fields that may be set; None: all."""
    node: Any = draft.values
    for part in prefix:
        node = node[part]
    if not isinstance(node, Mapping):
        return None, [draft.mistake(prefix, "must be a mapping of keys")]
    known = [field.name for field in fields(cls)] if keys is None else list(keys)
    unknown = [
        Mistake(f"unknown key '{'.'.join((*prefix, key))}'", draft.source((*prefix, key)), validate.one_of(key, known))
        for key in node
        if key not in known
    ]
    value, mistakes = validate.check(cls, draft, prefix, only=known)
    return value, unknown + mistakes


def _sources(content: Mapping[str, Value], path: validate.Path, name: str) -> Iterator[tuple[validate.Path, str]]:
    for key, value in content.items():
        yield (*path, key), f"{name}:{value.line}"
        if isinstance(value.content, dict):
            yield from _sources(value.content, (*path, key), name)
