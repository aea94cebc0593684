"""Docstrings are plain text with `names` in backticks: written for an editor, turned into what Sphinx reads.

Fields of a dataclass are documented where they are defined, by the comment behind them: they become a list.
"""

import dataclasses
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

from fedkd.configuration import reference

_SPECIAL = re.compile(r"[\\*|]|(?<=\w)_\b")


def plain(app: Sphinx, what: str, name: str, owner: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [_escape(line) for line in lines]
    if inspect.isclass(owner) and dataclasses.is_dataclass(owner) and (keys := reference.of(owner)):
        lines += ["", *(_field(key) for key in keys), ""]


def _escape(line: str) -> str:
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return _SPECIAL.sub(r"\\\g<0>", line.replace("`", "'"))
    return "".join(f"``{part}``" if i % 2 else _SPECIAL.sub(r"\\\g<0>", part) for i, part in enumerate(parts))


def _field(key: reference.Key) -> str:
    kind = " ".join(filter(None, (key.type, key.range)))
    default = f", default ``{key.default}``" if key.default else ""
    return f"- ``{key.name}`` (``{kind}``{default})" + (f": {_escape(key.comment)}" if key.comment else "")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", plain)
    return {"parallel_read_safe": True}
