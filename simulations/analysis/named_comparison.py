"""Named comparisons: YAML files, in conf/comparison or elsewhere, that can say more than a grid.

A first line `# about`, then: base (overrides that all runs share), settings and methods (label: overrides). Optional:
seeds, columns (title: metric), metric, baseline, target, published (setting: {method: text}), tune (KEY or METHOD.KEY:
values) and tune_seeds. Imports no torch.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen, Predicate
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from fedkd import errors, strict_yaml
from fedkd.configuration import compose, validate
from fedkd.errors import ConfigError, Mistake
from simulations.analysis import grid, metric
from simulations.analysis.grid import COMMAND_LINE, Axis, ComparisonRequest, Overrides

_NEEDED = ("base", "settings", "methods")
_FIXED = ("preset", "strategy")  # overrides of a named comparison cannot change these


def names() -> tuple[str, ...]:
    """The comparisons in conf."""
    return compose.options("comparison", conf=compose.CONF)


def parse(overrides: Sequence[str]) -> ComparisonRequest | None:
    """The comparison that `comparison=NAME` or `comparison=FILE.yaml` names; None without such an override.

    The other overrides follow those of the file and replace them; `seed` may be a list. Raises ConfigError.
    """
    chosen = [override.partition("=")[2].strip() for override in overrides if _key(override) == "comparison"]
    if not chosen:
        return None
    rest = [override for override in overrides if _key(override) != "comparison"]
    axes = grid.read_axes(rest)
    mistakes = [_refusal(axis) for axis in axes if axis.key != "seed" and (axis.is_list or axis.key in _FIXED)]
    if len(chosen) > 1:
        mistakes.append(Mistake(f"comparison is given {len(chosen)} times", COMMAND_LINE, "give it once"))
    errors.refuse(mistakes)
    extra = [override for override in rest if _key(override) != "seed"]
    return _load(chosen[0], extra, next((grid.seeds(axis) for axis in axes if axis.key == "seed"), None))


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _refusal(axis: Axis) -> Mistake:
    if axis.is_list:
        mend = "give one value; only seed may be a list there. Or write a grid without comparison="
        return Mistake(f"{axis.key} is a list, and the comparison has its own settings", COMMAND_LINE, mend)
    mend = "leave it out, or write a grid without comparison="
    return Mistake(f"{axis.key} cannot be chosen: the comparison has its own", COMMAND_LINE, mend)


def _load(name: str, extra: Sequence[str], seeds: tuple[int, ...] | None) -> ComparisonRequest:
    is_file = name.endswith((".yaml", ".yml"))
    path, where = (Path(name), name) if is_file else _find(name)
    content, about = _read(path, where)
    errors.refuse(list(_mistakes(content, where)) or _unknown_labels(content, where))
    base = _split(content["base"], "base", where)
    pairs = {
        (str(setting), str(method)): (*base, *_split(shared, setting, where), *_split(own, method, where), *extra)
        for setting, shared in content["settings"].items()
        for method, own in content["methods"].items()
    }
    columns = {title: metric.parse(text, where) for title, text in content.get("columns", {}).items()}
    return ComparisonRequest(
        overrides=pairs,
        seeds=seeds or tuple(content.get("seeds", grid.SEEDS)),
        columns=columns or dict(grid.COLUMNS),
        metric=content.get("metric", ""),
        baseline=content.get("baseline", ""),
        target=content.get("target"),
        published=content.get("published"),
        tune=tuple(f"{key}={_values(values)}" for key, values in content.get("tune", {}).items()),
        tune_seeds=content.get("tune_seeds", 1),
        about=about,
        where=where,
    )


def _find(name: str) -> tuple[Path, str]:
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
    content: Any = strict_yaml.read(text, where).plain
    if not isinstance(content, dict):
        raise ConfigError("the file is no mapping of keys", where=where, mend=f"it needs {', '.join(_NEEDED)}")
    about = text.partition("\n")[0]
    return content, about.removeprefix("#").strip() if about.startswith("#") else ""


def _mistakes(content: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    for key in _NEEDED:
        if key not in content:
            yield Mistake(f"{key} is missing", where, f"a comparison needs {', '.join(_NEEDED)}")
    for key in content:
        if key not in _SHAPES:
            yield Mistake(f"unknown key '{key}'", where, validate.one_of(key, tuple(_SHAPES)))
    for key, (shape, mend) in _SHAPES.items():
        if key in content and not _has_shape(content[key], shape):
            yield Mistake(f"{key} has the wrong form", where, mend)


def _unknown_labels(content: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    """Labels of published figures that are no setting or method."""
    for setting, row in content.get("published", {}).items():
        for label, labels in ((setting, content["settings"]), *((method, content["methods"]) for method in row)):
            if label not in labels:
                yield Mistake(f"published names '{label}'", where, validate.one_of(label, labels))


def _split(text: str | None, label: str, where: str) -> Overrides:
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise ConfigError(
            f"the overrides of '{label}' cannot be split: {error}", where=where, mend="close the quote"
        ) from None


def _values(value: str | list[Any]) -> str:
    return value if isinstance(value, str) else ",".join(map(strict_yaml.write, value))


_Texts = Annotated[dict[Any, str | None], MinLen(1)]
_Seeds = Annotated[list[NonNegativeInt], MinLen(1), Predicate(lambda seeds: len(set(seeds)) == len(seeds))]
_SHAPES: Mapping[str, tuple[Any, str]] = {
    "base": (str, "write overrides: preset=fedgen-mnist rounds=50"),
    "settings": (_Texts, "write label: overrides, a line each"),
    "methods": (_Texts, "write label: overrides, a line each"),
    "seeds": (_Seeds, "write a list of different whole numbers from 0: [0, 1, 2]"),
    "columns": (Annotated[dict[Any, str], MinLen(1)], "write title: metric, a line each"),
    "metric": (str, "e.g. clients.pooled top5"),
    "baseline": (str, "write the label of a method"),
    "target": (float, "write a number: 0.9"),
    "tune": (dict[Any, Annotated[str | list[Any], MinLen(1)]], "write KEY or METHOD.KEY: 0.1,1, a line each"),
    "tune_seeds": (PositiveInt, "write a whole number from 1"),
    "published": (dict[Any, _Texts], "write setting: {method: text}, a line each, in quotes"),
}


def _has_shape(value: Any, shape: Any) -> bool:
    try:
        TypeAdapter(shape).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True
