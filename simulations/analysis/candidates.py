"""The candidates of `--tune`: the combinations of values to try for each method. Imports no torch.

`KEY=a,b` is for all methods, `METHOD.KEY=a,b` for one; both may begin with `tune.`, which overrides need.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from fedkd import errors
from fedkd.config import RunConfig
from fedkd.configuration import validate
from fedkd.errors import ConfigError, Mistake
from simulations.analysis import grid
from simulations.analysis.grid import Asked, Words

WHERE = "--tune"
PREFIX = "tune."  # of overrides
NOTHING: tuple[Words, ...] = ((),)  # the candidates of a method that is not tuned

_SHORT = {"lr": "train.lr"}
_NOT = ("seed", "strategy", "preset", "comparison", "data", "partition", "evaluate")  # not part of training
_KEYS = frozenset({field.name for field in fields(RunConfig)} | {*_SHORT, *_NOT})


@dataclass(frozen=True)
class _Given:
    """One parsed text: the methods it is for, and the override."""

    methods: tuple[str, ...]
    is_for_all: bool
    word: str

    @property
    def key(self) -> str:
        return self.word.partition("=")[0]


def of(texts: Sequence[str], asked: Asked) -> dict[str, tuple[Words, ...]]:
    """The candidates of each method, in the order of the methods; NOTHING for untuned ones. Raises ConfigError.

    Values for one method replace those for all.
    """
    given, mistakes = [], list[Mistake]()
    for text in texts:
        try:
            given.append(_read(text, asked))
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse(mistakes)
    return {method: _combined(_of_method(method, given)) for method in asked.methods}


def later(first: Sequence[str], then: Sequence[str]) -> tuple[str, ...]:
    """Both lists; of the first, without those whose method and key the second repeats."""
    again = {_target(text) for text in then}
    return (*(text for text in first if _target(text) not in again), *then)


def _target(text: str) -> str:
    return text.removeprefix(PREFIX).rpartition("=")[0].strip().casefold()


def _read(text: str, asked: Asked) -> _Given:
    rest = text.strip().removeprefix(PREFIX)
    if rest.partition("=")[0].split(".")[0].strip() in _KEYS:
        return _given(rest, asked.methods, True, text)
    for name, methods in _names(asked):
        if rest.casefold().startswith(f"{name.casefold()}."):
            return _given(rest[len(name) + 1 :], methods, False, text)
    name, dot, _ = rest.partition("=")[0].partition(".")
    if not dot:
        return _given(rest, asked.methods, True, text)
    close = validate.nearest(name, [*asked.methods, *sorted(_KEYS)])
    hint = f"did you mean '{close}'?   " if close else ""
    raise ConfigError(
        f"'{text}': '{name}' is neither a method nor a key",
        where=WHERE,
        mend=f"{hint}write METHOD.KEY=a,b or KEY=a,b; methods: {', '.join(asked.methods)}",
    )


def _names(asked: Asked) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names that may precede a key: labels of methods, longest first, then strategies of methods."""
    yield from ((label, (label,)) for label in sorted(asked.methods, key=len, reverse=True))
    taken: dict[str, dict[str, None]] = {}
    for (_, method), words in asked.words.items():
        for word in words:
            if word.startswith("strategy="):
                taken.setdefault(word.partition("=")[2].strip(), {})[method] = None
    yield from ((name, tuple(methods)) for name, methods in taken.items())


def _given(word: str, methods: tuple[str, ...], is_for_all: bool, text: str) -> _Given:
    key, equals, values = word.partition("=")
    key = _SHORT.get(key.strip(), key.strip())
    if not equals:
        raise ConfigError(f"'{text}' is not a list", where=WHERE, mend="write key=a,b,c")
    if not key:
        raise ConfigError(f"'{text}' names no key", where=WHERE, mend="write KEY=a,b,c or METHOD.KEY=a,b,c")
    if key.split(".")[0] in _NOT and not key.startswith("strategy."):
        raise ConfigError(
            f"{key} cannot be tuned", where=WHERE, mend="tune a key of the training, such as train.lr or strategy.mu"
        )
    return _Given(methods, is_for_all, f"{key}={values}")


def _of_method(method: str, given: Iterable[_Given]) -> list[str]:
    its = [each for each in given if method in each.methods]
    own = {each.key for each in its if not each.is_for_all}
    return [each.word for each in its if not each.is_for_all or each.key not in own]


def _combined(words: Sequence[str]) -> tuple[Words, ...]:
    """All combinations of the values. Raises ConfigError for a key that appears twice or has one value."""
    axes = grid.read(words)
    errors.refuse(
        Mistake(f"{axis.key} has only one value", WHERE, "write key=a,b,c") for axis in axes if not axis.is_list
    )
    return tuple(
        tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    )


def alike(tried: Mapping[str, Sequence[Words]]) -> bool:
    """Whether all methods have the same candidates."""
    return len({tuple(map(tuple, each)) for each in tried.values()}) < 2


def shown(tried: Mapping[str, Sequence[Words]]) -> list[str]:
    """`lr=0.1; lr=0.3`, or one line per method if these differ; methods that are not tuned come last."""
    lines = {method: "; ".join(" ".join(words) for words in each) for method, each in tried.items()}
    if alike(tried):
        return [text for text in list(lines.values())[:1] if text]
    plain = [method for method, text in lines.items() if not text]
    rest = [f"not tuned: {', '.join(plain)}"] if plain else []
    return [*(f"{method}: {text}" for method, text in lines.items() if text), *rest]
