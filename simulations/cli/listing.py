"""`fedkd list`: the options in conf, each with the first comment of its file; and the runs below a folder."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd import plain_text, strict_yaml
from fedkd.configuration import compose, groups, reference, validate
from fedkd.errors import ConfigError

Row = Mapping[str, Any]  # name, about and, for strategies and runs, more

_WIDTH = 80  # columns of the table of strategies
_TRAITS = {  # a row's key -> the class attribute of the server half
    "knowledge": "knowledge",
    "public_set": "proxy",
    "across_architectures": "works_across_students",
    "serves": "serves",
    "paper": "paper",
}
_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")  # in a strategy's comment: authors, venue and year
_HEADINGS = ("name", "public set", "across", "serves", "what crosses")


def of(kind: str | None, runs: Path) -> dict[str, list[Row]]:
    """The rows of one list, or of all: the options in conf, and the runs. Raises ConfigError."""
    if kind == "runs":
        return {"runs": of_runs(runs)}
    if kind is None:
        return {**{name: of_group(group) for name, group in groups.LISTS.items()}, "runs": of_runs(runs)}
    if kind not in groups.LISTS:
        mend = validate.one_of(kind, [*groups.LISTS, "runs"])
        raise ConfigError(f"there is no list of '{kind}'", where="command line", mend=mend)
    return {kind: of_strategies() if kind == "strategies" else of_group(groups.LISTS[kind])}


def of_group(group: str) -> list[Row]:
    """The options of a group of conf."""
    return [{"name": name, "about": _read(group, name)[1]} for name in compose.options(group)]


def of_strategies() -> list[Row]:
    """The strategies, each with the traits of its server half."""
    rows: list[Row] = []
    for name in compose.options("strategy"):
        content, about = _read("strategy", name)
        rows.append({"name": name, "about": about, **_traits(str(content.get("name", name)), name, about)})
    return rows


def of_runs(runs: Path) -> list[Row]:
    """The run folders below `runs`, oldest first."""
    from simulations.run import runs as runs_

    return [{"name": row["run"], "about": _about_run(row), **row} for row in runs_.listing(runs)]


def _about_run(row: Row) -> str:
    algorithm = "/".join(filter(None, (row["strategy"], row["variant"])))
    accuracy = "" if row["accuracy"] is None else f"accuracy {row['accuracy']:.3f}"
    progress = f"round {row['rounds']}/{row['of']}"
    parts = (algorithm, row["data"], row["partition"], f"seed {row['seed']}", progress, accuracy)
    return "  ".join(filter(None, parts))


def text(lists: Mapping[str, list[Row]]) -> str:
    """The lists as text; several have headings. Removes control characters: names and comments come from files."""
    return plain_text.printable(_text(lists), keep="\n")


def _text(lists: Mapping[str, list[Row]]) -> str:
    if list(lists) == ["strategies"]:
        return _table(lists["strategies"])
    width = max((len(row["name"]) for rows in lists.values() for row in rows), default=0)
    parts = []
    for name, rows in lists.items():
        lines = ["  ".join(filter(None, (f"{row['name']:<{width}}", row.get("state"), row["about"]))) for row in rows]
        body = [line.rstrip() for line in lines] or ["none yet"]
        parts.append("\n".join([name, *(f"  {line}" for line in body)] if len(lists) > 1 else body))
    return "\n\n".join(parts)


def _table(rows: list[Row]) -> str:
    """One line of traits per strategy; below it what the strategy does, its variants and its paper."""
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for line, row in zip(cells, [None, *rows], strict=True):
        first = "".join(f"{cell:<{width}}  " for cell, width in zip(line, widths, strict=False))
        lines += textwrap.wrap(line[-1], _WIDTH, initial_indent=first, subsequent_indent=" " * indent)
        if row is not None:
            about, paper = row["about"], row.get("paper", "")
            paper = "" if _CITATION.search(about) or paper in about else paper
            below = f"{about} ({paper})" if paper else about
            lines += textwrap.wrap(below, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    across = {True: "yes", False: "no"}.get(row.get("across_architectures", ""), "?")
    return (row["name"], row.get("public_set", "?"), across, row.get("serves", "?"), row.get("knowledge") or "?")


def _traits(half: str, name: str, about: str) -> dict[str, Any]:
    """The traits of the server half; empty if it is not in our package.

    FedProx and others are client halves for FedAvg's server half: `about` cites their paper.
    """
    attributes = reference.traits(half)
    traits = {key: attributes[attribute] for key, attribute in _TRAITS.items()} if attributes else {}
    cited = _CITATION.findall(about)
    return traits | ({"paper": cited[-1]} if traits and cited and half != name else {})


def _read(group: str, name: str) -> tuple[Mapping[str, Any], str]:
    """An option of a group: its content, and its line in the list. One of the user's own names where it comes from."""
    about = groups.about(group, name)
    path = compose.CONF / group / f"{name}.yaml"
    if not path.exists():
        return compose.node(group, name), about
    content = strict_yaml.read(path.read_text(encoding="utf-8"), path.name).plain
    content = content if isinstance(content, dict) else {}
    variants = content.get("variants")
    return content, about + (f"; variants: {', '.join(variants)}" if variants else "")
