"""What a failure says: the rule, the classes, what was found, the mend and the page that has both."""

import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedkd.configuration import compose, plugins

HERE, ROOT = str(Path(__file__).parent), Path(__file__).parents[2]
PAGE = "docs/conformance.md"
ROUNDS_RUN = "test_three_rounds_run_and_all_their_numbers_are_finite"
_ROW = re.compile(r"^\| (?!rule \||---)(.+?) \| (.+) \|$")
_LINES, _COLUMNS = 6, 160  # of what an assertion found: the rest are bytes of tensors


@dataclass(frozen=True)
class Rule:
    """A row of the page."""

    mend: str
    section: str


@cache
def rules() -> dict[str, Rule]:
    """Name of a test -> its row. The page says it in words: `test_it_names_its_source` is 'it names its source'."""
    found, section = {}, ""
    for line in (ROOT / PAGE).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").lower().replace(" ", "-")
        elif row := _ROW.match(line):
            found["test_" + row[1].replace(" ", "_")] = Rule(row[2], section)
    return found


def told(test: str, call: Any, error: BaseException) -> str:
    """The message of a failed test; `call` has the parameters that it was called with, if there are any."""
    frame, is_own = _place(error)
    rule = rules()[ROUNDS_RUN if is_own and not isinstance(error, AssertionError) else test]
    path = Path(frame.filename)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    lines = [
        ("rule", test.removeprefix("test_").replace("_", " ")),
        ("class", "; ".join(_classes(call.params if call else {})) or "-"),
        ("found", _found(error)),
        ("at", f"{shown}:{frame.lineno} in {frame.name}: {frame.line}"),
        ("mend", rule.mend),
        ("page", f"{PAGE}#{rule.section}   (pytest -vv shows the traceback)"),
    ]
    return "\n".join(f"{head:<6} {text}" for head, text in lines)


def _classes(params: dict[str, Any]) -> Iterator[str]:
    """Both halves of the algorithm that a test was about, with their files."""
    for value in params.values():
        if isinstance(value, tuple):
            node = compose.node("strategy", value[0].removeprefix("strategy="))
            yield _half("strategies", node["name"])
            yield _half("clients", node.get("client", "supervised"))
            yield " ".join(value)
        elif isinstance(value, str) and value in plugins.modules("strategies"):
            yield _half("strategies", value)


def _half(half: plugins.Half, name: str) -> str:
    title = name
    with suppress(Exception):  # it may be the very class that cannot be imported
        title = (plugins.strategy if half == "strategies" else plugins.client)(name).__name__
    return f"{title} ({half}/{name.replace('-', '_')}.py)"


def _found(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    cut = [line if len(line) <= _COLUMNS else line[:_COLUMNS] + " ..." for line in lines[:_LINES]]
    return kind + "\n       ".join([*cut, *(["..."] if len(lines) > _LINES else [])])


def _place(error: BaseException) -> tuple[traceback.FrameSummary, bool]:
    """The innermost line of a method's own code, and that it is that; else of the test."""
    frames = traceback.extract_tb(error.__traceback__)
    halves = (str(ROOT / "strategies"), str(ROOT / "clients"))
    if own := [frame for frame in frames if frame.filename.startswith(halves)]:
        return own[-1], True
    return [frames[-1], *(frame for frame in frames if frame.filename.startswith(HERE))][-1], False
