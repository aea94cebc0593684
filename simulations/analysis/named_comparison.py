"""Named comparisons: YAML files, in conf/comparison or elsewhere, that can say more than a grid.

A first line `# about`, then: base (words that all runs share), settings and methods (label: words), and if wanted
seeds, columns (title: metric), metric, baseline, target, published (setting: {method: text}), tune (KEY or METHOD.KEY:
values) and tune_seeds. Imports no torch.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd import errors, strict_yaml
from fedkd.configuration import compose, validate
from fedkd.errors import ConfigError, Mistake
from simulations.analysis import grid, metric
from simulations.analysis.grid import COMMAND_LINE, Asked, Axis, Words

_NEEDED = ("base", "settings", "methods")
_ITS_OWN = ("preset", "strategy")  # overrides of a named comparison cannot change these


def names() -> tuple[str, ...]:
    """The comparisons in conf."""
    return compose.options("comparison", conf=compose.CONF)


def of_words(words: Sequence[str]) -> Asked | None:
    """The comparison that `comparison=NAME` or `comparison=FILE.yaml` names, None where no word does.

    The other overrides follow those of the file and replace them; `seed` may be a list. Raises ConfigError.
    """
    chosen = [word.partition("=")[2].strip() for word in words if word.partition("=")[0].strip() == "comparison"]
    if not chosen:
        return None
    rest = [word for word in words if word.partition("=")[0].strip() != "comparison"]
    axes = grid.read(rest)
    mistakes = [_refusal(axis) for axis in axes if axis.key != "seed" and (axis.is_list or axis.key in _ITS_OWN)]
    if len(chosen) > 1:
        mistakes.append(Mistake(f"comparison is given {len(chosen)} times", COMMAND_LINE, "give it once"))
    errors.refuse(mistakes)
    extra = [word for word in rest if word.partition("=")[0].strip() != "seed"]
    return _load(chosen[0], extra, next((grid.seeds(axis) for axis in axes if axis.key == "seed"), None))


def _refusal(axis: Axis) -> Mistake:
    if axis.is_list:
        mend = "give one value; only seed may be a list there. Or write a grid without comparison="
        return Mistake(f"{axis.key} is a list, and the comparison has its own settings", COMMAND_LINE, mend)
    mend = "leave it out, or write a grid without comparison="
    return Mistake(f"{axis.key} cannot be chosen: the comparison has its own", COMMAND_LINE, mend)


def _load(name: str, extra: Sequence[str], seeds: tuple[int, ...] | None) -> Asked:
    is_file = name.endswith((".yaml", ".yml"))
    path, where = (Path(name), name) if is_file else _place(name)
    found, about = _read(path, where)
    errors.refuse(list(_mistakes(found, where)) or _strangers(found, where))
    base = _words(found["base"], "base", where)
    pairs = {
        (str(setting), str(method)): (*base, *_words(its, setting, where), *_words(own, method, where), *extra)
        for setting, its in found["settings"].items()
        for method, own in found["methods"].items()
    }
    return Asked(
        words=pairs,
        seeds=seeds or tuple(found.get("seeds", grid.SEEDS)),
        columns={title: metric.parse(text, where) for title, text in found["columns"].items()}
        if "columns" in found
        else dict(grid.COLUMNS),
        metric=found.get("metric", ""),
        baseline=found.get("baseline", ""),
        target=found.get("target"),
        published=found.get("published"),
        tune=tuple(f"{key}={_values(each)}" for key, each in found.get("tune", {}).items()),
        tune_seeds=found.get("tune_seeds", 1),
        about=about,
        where=where,
    )


def _place(name: str) -> tuple[Path, str]:
    if name not in names():
        mend = validate.one_of(name, names()) + "   or a file: comparison=my.yaml"
        raise ConfigError(f"there is no comparison '{name}'", where=COMMAND_LINE, mend=mend)
    return compose.CONF / "comparison" / f"{name}.yaml", f"conf/comparison/{name}.yaml"


def _read(path: Path, where: str) -> tuple[Mapping[str, Any], str]:
    """The content of a file, and the comment in its first line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=where, mend="comparison=NAME, or a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=where) from error
    found: Any = strict_yaml.read(text, where).plain
    if not isinstance(found, dict):
        raise ConfigError("the file is no mapping of keys", where=where, mend=f"it needs {', '.join(_NEEDED)}")
    about = text.partition("\n")[0]
    return found, about.removeprefix("#").strip() if about.startswith("#") else ""


def _mistakes(found: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    known = tuple(_SHAPES)
    yield from (
        Mistake(f"{key} is missing", where, f"a comparison needs {', '.join(_NEEDED)}")
        for key in _NEEDED
        if key not in found
    )
    yield from (
        Mistake(f"unknown key '{key}'", where, validate.one_of(key, known)) for key in found if key not in known
    )
    for key, (is_right, shape) in _SHAPES.items():
        if key in found and not is_right(found[key]):
            yield Mistake(f"{key} has another form", where, shape)


def _strangers(found: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    """Labels of published figures that are no setting or method."""
    for setting, row in found.get("published", {}).items():
        for label, labels in ((setting, found["settings"]), *((method, found["methods"]) for method in row)):
            if label not in labels:
                yield Mistake(f"published names '{label}'", where, validate.one_of(label, labels))


def _words(text: str | None, label: str, where: str) -> Words:
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise ConfigError(
            f"the words of '{label}' cannot be split: {error}", where=where, mend="close the quote"
        ) from None


def _values(value: str | list[Any]) -> str:
    return value if isinstance(value, str) else ",".join(map(strict_yaml.write, value))


def _is_grids(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str | list) and each for each in value.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(text, str | None) for text in value.values())


def _is_seeds(value: Any) -> bool:
    whole = isinstance(value, list) and bool(value) and all(type(seed) is int and seed >= 0 for seed in value)
    return whole and len(set(value)) == len(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_texts, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "base": (_is_text, "write words: preset=fedgen-mnist rounds=50"),
    "settings": (_is_texts, "write label: words, a line each"),
    "methods": (_is_texts, "write label: words, a line each"),
    "seeds": (_is_seeds, "write a list of different whole numbers from 0: [0, 1, 2]"),
    "columns": (_is_texts, "write title: metric, a line each"),
    "metric": (_is_text, "e.g. clients.pooled top5"),
    "baseline": (_is_text, "write the label of a method"),
    "target": (_is_number, "write a number: 0.9"),
    "tune": (_is_grids, "write KEY or METHOD.KEY: 0.1,1, a line each"),
    "tune_seeds": (_is_count, "write a whole number from 1"),
    "published": (_is_table, "write setting: {method: text}, a line each, in quotes"),
}
