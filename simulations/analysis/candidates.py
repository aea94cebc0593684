"""The candidates of `--tune`: the combinations of values to try for each method. Imports no torch.

`KEY=a,b` tunes all methods, `METHOD.KEY=a,b` one; both may begin with `tune.`, which overrides require.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from fedkd import errors
from fedkd.config import RunConfig
from fedkd.configuration import validate
from fedkd.errors import ConfigError, Mistake
from simulations.analysis import grid
from simulations.analysis.grid import ComparisonRequest, Overrides

WHERE = "--tune"
PREFIX = "tune."  # of overrides
NOTHING: tuple[Overrides, ...] = ((),)  # the candidates of a method that is not tuned

_SHORT = {"lr": "train.lr"}
_NOT_TRAINING = ("seed", "strategy", "preset", "comparison", "data", "partition", "evaluate")
_KEYS = frozenset({field.name for field in fields(RunConfig)} | {*_SHORT, *_NOT_TRAINING})


@dataclass(frozen=True)
class _Axis:
    """One parsed text: the methods that it tunes, the key, and its list of values."""

    methods: tuple[str, ...]
    is_for_all: bool
    key: str
    values: str


def parse(texts: Sequence[str], request: ComparisonRequest) -> dict[str, tuple[Overrides, ...]]:
    """The candidates of each method, in the order of the methods; NOTHING for untuned ones. Raises ConfigError.

    Values for one method replace those for all.
    """
    axes, mistakes = [], list[Mistake]()
    for text in texts:
        try:
            axes.append(_read(text, request))
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse(mistakes)
    return {method: _combined(_of_method(method, axes)) for method in request.methods}


def merged(earlier: Sequence[str], later: Sequence[str]) -> tuple[str, ...]:
    """Both lists; a later text replaces an earlier one with the same method and key."""
    replaced = {_target(text) for text in later}
    return (*(text for text in earlier if _target(text) not in replaced), *later)


def _target(text: str) -> str:
    return text.removeprefix(PREFIX).rpartition("=")[0].strip().casefold()


def _read(text: str, request: ComparisonRequest) -> _Axis:
    rest = text.strip().removeprefix(PREFIX)
    if rest.partition("=")[0].split(".")[0].strip() in _KEYS:
        return _axis(rest, request.methods, True, text)
    for name, methods in _names(request):
        if rest.casefold().startswith(f"{name.casefold()}."):
            return _axis(rest[len(name) + 1 :], methods, False, text)
    name, dot, _ = rest.partition("=")[0].partition(".")
    if not dot:
        return _axis(rest, request.methods, True, text)
    close = validate.nearest(name, [*request.methods, *sorted(_KEYS)])
    hint = f"did you mean '{close}'?   " if close else ""
    raise ConfigError(
        f"'{text}': '{name}' is neither a method nor a key",
        where=WHERE,
        mend=f"{hint}write METHOD.KEY=a,b or KEY=a,b; methods: {', '.join(request.methods)}",
    )


def _names(request: ComparisonRequest) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names that may precede a key: labels of methods, longest first, then the strategies of methods."""
    yield from ((label, (label,)) for label in sorted(request.methods, key=len, reverse=True))
    by_strategy: dict[str, dict[str, None]] = {}
    for (_, method), overrides in request.overrides.items():
        for override in overrides:
            if override.startswith("strategy="):
                by_strategy.setdefault(override.partition("=")[2].strip(), {})[method] = None
    yield from ((name, tuple(methods)) for name, methods in by_strategy.items())


def _axis(override: str, methods: tuple[str, ...], is_for_all: bool, text: str) -> _Axis:
    key, equals, values = override.partition("=")
    key = _SHORT.get(key.strip(), key.strip())
    if not equals:
        raise ConfigError(f"'{text}' is not a list", where=WHERE, mend="write key=a,b,c")
    if not key:
        raise ConfigError(f"'{text}' names no key", where=WHERE, mend="write KEY=a,b,c or METHOD.KEY=a,b,c")
    if key.split(".")[0] in _NOT_TRAINING and not key.startswith("strategy."):
        raise ConfigError(
            f"{key} cannot be tuned", where=WHERE, mend="tune a key of the training, such as train.lr or strategy.mu"
        )
    return _Axis(methods, is_for_all, key, values)


def _of_method(method: str, axes: Iterable[_Axis]) -> list[str]:
    """The overrides of one method; an axis for this method alone replaces one for all."""
    candidates = [axis for axis in axes if method in axis.methods]
    specific = {axis.key for axis in candidates if not axis.is_for_all}
    return [f"{axis.key}={axis.values}" for axis in candidates if not axis.is_for_all or axis.key not in specific]


def _combined(overrides: Sequence[str]) -> tuple[Overrides, ...]:
    """All combinations of the values. Raises ConfigError for a key that appears twice or has one value."""
    axes = grid.read_axes(overrides)
    errors.refuse(
        Mistake(f"{axis.key} has only one value", WHERE, "write key=a,b,c") for axis in axes if not axis.is_list
    )
    return tuple(
        tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    )


def alike(tried: Mapping[str, Sequence[Overrides]]) -> bool:
    """Whether all methods have the same candidates."""
    return len({tuple(map(tuple, candidates)) for candidates in tried.values()}) < 2


def shown(tried: Mapping[str, Sequence[Overrides]]) -> list[str]:
    """`lr=0.1; lr=0.3`, or one line per method if these differ; methods that are not tuned come last."""
    lines = {method: "; ".join(map(" ".join, candidates)) for method, candidates in tried.items()}
    if alike(tried):
        return [text for text in list(lines.values())[:1] if text]
    plain = [method for method, text in lines.items() if not text]
    rest = [f"not tuned: {', '.join(plain)}"] if plain else []
    return [*(f"{method}: {text}" for method, text in lines.items() if text), *rest]
