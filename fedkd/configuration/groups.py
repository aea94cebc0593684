"""The groups of conf and their options: files of conf, and what users add. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd import extensions
from fedkd.configuration import plugins
from fedkd.errors import ConfigError

GROUPS = ("strategy", "data", "partition", "students", "engine", "proxy")
CONF = Path(__file__).parents[2] / "conf"  # in a checkout and in an installed wheel alike
LISTS = {  # as `fedkd list` calls them
    "strategies": "strategy",
    "data": "data",
    "partitions": "partition",
    "students": "students",
    "proxies": "proxy",
    "presets": "preset",
    "comparisons": "comparison",
    "engines": "engine",
}
KINDS: Mapping[str, extensions.Kind] = {  # the groups that users can add to
    "strategy": "strategy",
    "data": "data",
    "partition": "partition",
    "students": "student",
}


def options(group: str, *, conf: Path | None = None) -> tuple[str, ...]:
    """The options of a group, of `preset` or of `comparison`: files of conf, and what users add."""
    return tuple(sorted({*files(group, conf or CONF), *users(group)}))


def origin(group: str, name: str, *, conf: Path | None = None) -> str:
    """Where an option of a group comes from: a file of conf, a file of the user, or an installed package."""
    if name in files(group, conf or CONF):
        return f"conf/{group}/{name}.yaml"
    return name.partition(":")[0] if is_foreign(group, name) else extensions.origin(KINDS[group], name)


def about(group: str, name: str) -> str:
    """An option in one line: the first comment of its file, or where it comes from."""
    if name not in files(group, CONF):
        return f"from {origin(group, name)}"
    with (CONF / group / f"{name}.yaml").open(encoding="utf-8") as file:
        first = file.readline()
    return first[1:].strip() if first.startswith("#") else ""


def files(group: str, conf: Path) -> set[str]:
    """The names of the files of a group."""
    return {path.stem for path in (conf / group).glob("*.yaml")}


def users(group: str) -> dict[str, dict[str, str]]:
    """What users add to a group: name -> the keys that a file of conf would have. Raises ConfigError for our names."""
    if group not in KINDS:
        return {}
    added = plugins.settings() if group == "strategy" else {n: {"name": n} for n in extensions.names(KINDS[group])}
    if taken := sorted(added.keys() & files(group, CONF)):
        what = f"fedkd has its own {KINDS[group]} '{taken[0]}'"
        raise ConfigError(what, where=extensions.origin(KINDS[group], taken[0]), mend="choose another name")
    return added


def is_foreign(group: str, choice: Any) -> bool:
    """Whether it names a student of another library, which only that library can check."""
    return group == "students" and isinstance(choice, str) and choice.startswith(extensions.LIBRARIES)
