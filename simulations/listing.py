"""`fedkd list`: what conf offers, a line each from the file's first comment; and the runs below a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd import compose, plainyaml, schema
from fedkd.errors import ConfigError

GROUPS = {
    "strategies": "strategy",
    "data": "data",
    "partitions": "partition",
    "students": "students",
    "proxies": "proxy",
    "presets": "preset",
    "engines": "engine",
}

Row = Mapping[str, Any]  # name, about and, for runs, more


def of(what: str | None, runs: Path) -> dict[str, list[Row]]:
    """The rows of one list, or of all that conf offers. Raises ConfigError."""
    if what == "runs":
        return {"runs": of_runs(runs)}
    if what is None:
        return {name: of_group(group) for name, group in GROUPS.items()}
    if what not in GROUPS:
        known = [*GROUPS, "runs"]
        raise ConfigError(f"there is no list of '{what}'", where="command line", mend=schema.one_of(what, known))
    return {what: of_group(GROUPS[what])}


def of_group(group: str) -> list[Row]:
    """The options of a group of conf."""
    return [{"name": name, "about": _about(compose.CONF / group / f"{name}.yaml")} for name in compose.options(group)]


def of_runs(runs: Path) -> list[Row]:
    """The run folders below `runs`, oldest first."""
    from simulations import runs as runs_

    return [{"name": row["run"], "about": _about_run(row), **row} for row in runs_.listing(runs)]


def _about_run(row: Row) -> str:
    algorithm = "/".join(filter(None, (row["strategy"], row["variant"])))
    accuracy = "" if row["accuracy"] is None else f"accuracy {row['accuracy']:.3f}"
    parts = (
        algorithm,
        row["data"],
        row["partition"],
        f"seed {row['seed']}",
        f"round {row['rounds']}/{row['of']}",
        accuracy,
    )
    return "  ".join(filter(None, parts))


def text(found: Mapping[str, list[Row]]) -> str:
    """The lists for people; several have headings."""
    width = max((len(row["name"]) for rows in found.values() for row in rows), default=0)
    parts = []
    for name, rows in found.items():
        lines = ["  ".join(filter(None, (f"{row['name']:<{width}}", row.get("state"), row["about"]))) for row in rows]
        body = [line.rstrip() for line in lines] or ["none yet"]
        parts.append("\n".join([name, *(f"  {line}" for line in body)] if len(found) > 1 else body))
    return "\n\n".join(parts)


def _about(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    about = text.partition("\n")[0].removeprefix("#").strip() if text.startswith("#") else ""
    content = plainyaml.read(text, path.name).plain
    variants = content.get("variants") if isinstance(content, dict) else None
    return about + (f"; variants: {', '.join(variants)}" if variants else "")
