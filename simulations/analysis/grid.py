"""Grids: from overrides on a command line to settings, methods and seeds. Imports no torch.

A setting is everything except strategy and seed. Overrides are those of `fedkd run`; values may be lists (lists.py).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedkd import errors
from fedkd.configuration import compose
from fedkd.errors import ConfigError, Mistake
from simulations.analysis import lists
from simulations.analysis.metric import Metric

COMMAND_LINE = compose.COMMAND_LINE
SEEDS = (1, 2, 3)  # default
COLUMNS = {"worst tenth": Metric("clients.worst_decile", "last10"), "traffic": Metric("bytes.all", "sum")}  # likewise

Words = tuple[str, ...]
Pair = tuple[str, str]  # a setting and a method, by their labels
Label = Callable[["Sequence[Axis]", Sequence[str]], str]

_FIXED = {  # what cannot differ between cells, and why
    "engine": "the engine does not change results, and cells run inline",
    "checkpoint": "it does not change results",
    "data.root": "it does not change results",
    "data.download": "it does not change results",
    "evaluate.on": "it is for --tune, and all cells of a comparison use the same test data",
    "evaluate.validation": "it is for --tune, and all cells of a comparison use the same test data",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The request of a comparison, with unchecked texts; `words` maps each pair to its overrides, without a seed."""

    words: Mapping[Pair, Words]
    seeds: tuple[int, ...] = SEEDS
    columns: Mapping[str, Metric] = field(default_factory=lambda: dict(COLUMNS))
    metric: str = ""  # empty: depends on what the strategies serve
    baseline: str = ""  # empty: FedAvg, else the first method
    target: float | None = None
    published: Mapping[str, Mapping[str, str]] | None = None
    tune: tuple[str, ...] = ()  # texts of --tune: candidates.py
    tune_seeds: int = 1
    about: str = ""
    where: str = COMMAND_LINE

    @property
    def settings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(setting for setting, _ in self.words))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(method for _, method in self.words))


@dataclass(frozen=True)
class Axis:
    """An override `key=value` with its list of values; `place` is its index among the overrides."""

    place: int
    key: str
    values: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What varies along it: `seed`, `method` or `setting`."""
        if self.key == "seed":
            return "seed"
        return "method" if self.key.split(".")[0] == "strategy" else "setting"

    @property
    def is_list(self) -> bool:
        return len(self.values) > 1


def of_words(words: Sequence[str]) -> Asked:
    """The grid that the overrides describe. Raises ConfigError with all their mistakes."""
    axes = read(words)
    if not any(axis.is_list for axis in axes):
        mend = "give one, e.g. strategy=fedavg,fedgen seed=1..8; a single run: fedkd run"
        raise ConfigError("nothing is compared: no word has a list of values", where=COMMAND_LINE, mend=mend)
    settings = list(_product([axis for axis in axes if axis.kind == "setting" and axis.is_list], _setting_label))
    methods = list(_product([axis for axis in axes if axis.kind == "method"], _method_label))
    if all(
        not label or label.startswith(",") for label, _ in methods
    ):  # the strategy comes from a preset, a file or the default
        name = _unwritten_strategy(_fill(words, axes, settings[0][1] | methods[0][1]))
        methods = [(name + label, chosen) for label, chosen in methods]
    return Asked(
        words={
            (setting, method): _fill(words, axes, its | own) for setting, its in settings for method, own in methods
        },
        seeds=next((seeds(axis) for axis in axes if axis.kind == "seed"), SEEDS),
    )


def played(words: Words, seed: int) -> list[str]:
    """The overrides of one run: inline, because cells run side by side."""
    return [*words, f"seed={seed}", "engine=inline"]


def read(words: Sequence[str]) -> list[Axis]:
    """The overrides `key=value`, each with its values. Raises ConfigError for invalid lists."""
    axes: list[Axis] = []
    mistakes: list[Mistake] = []
    for place, word in enumerate(words):
        key, equals, text = word.partition("=")
        if not equals:
            continue  # a file, or a mistake that compose reports
        try:
            axes.append(Axis(place, key.strip(), lists.expand(key.strip(), text, COMMAND_LINE)))
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse([*mistakes, *_twice(axes), *_fixed(axes)])
    return axes


def seeds(axis: Axis) -> tuple[int, ...]:
    """The seeds of a list. Raises ConfigError."""
    strangers = [text for text in axis.values if not text.strip().isdecimal()]
    if strangers:
        what = f"seed = {strangers[0]}"
        raise ConfigError(what, where=COMMAND_LINE, mend="must be whole numbers from 0, e.g. seed=1..8 or seed=1,2,5")
    return tuple(map(int, axis.values))


def _twice(axes: Sequence[Axis]) -> Iterator[Mistake]:
    counts = Counter(axis.key for axis in axes)
    for key in (key for key, count in counts.items() if count > 1):
        yield Mistake(f"{key} is given {counts[key]} times", COMMAND_LINE, f"give it once, with a list: {key}=a,b")


def _fixed(axes: Sequence[Axis]) -> Iterator[Mistake]:
    for axis in axes:
        part = next((key for key in _FIXED if axis.key == key or axis.key.startswith(key + ".")), None)
        if axis.is_list and part:
            yield Mistake(f"{axis.key} cannot be a list", COMMAND_LINE, f"give one value: {_FIXED[part]}")


def _product(axes: Sequence[Axis], label: Label) -> Iterator[tuple[str, dict[int, str]]]:
    """A label, and place -> value, for each combination; the last axis varies fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield label(axes, values), {axis.place: value for axis, value in zip(axes, values, strict=True)}


def _setting_label(axes: Sequence[Axis], values: Sequence[str]) -> str:
    """`alpha 0.1, clients 20`: last parts of the keys, or whole keys if these are ambiguous."""
    counts = Counter(axis.key.rpartition(".")[2] for axis in axes)
    names = [last if counts[last := axis.key.rpartition(".")[2]] == 1 else axis.key for axis in axes]
    return ", ".join(f"{name} {value.strip()}" for name, value in zip(names, values, strict=True))


def _method_label(axes: Sequence[Axis], values: Sequence[str]) -> str:
    """`fedgen, variant=paper`: the strategy, and those of its keys that vary."""
    chosen = [(axis, value.strip()) for axis, value in zip(axes, values, strict=True)]
    name = next((value for axis, value in chosen if axis.key == "strategy"), "")
    own = [f", {axis.key.partition('.')[2]}={value}" for axis, value in chosen if axis.is_list and "." in axis.key]
    return name + "".join(own)


def _fill(words: Sequence[str], axes: Sequence[Axis], chosen: Mapping[int, str]) -> Words:
    """The overrides, with each list replaced by the chosen value, without the seed."""
    keys = {axis.place: axis.key for axis in axes}
    filled = (
        (place, f"{keys[place]}={chosen[place]}" if place in chosen else word) for place, word in enumerate(words)
    )
    return tuple(word for place, word in filled if keys.get(place) != "seed")


def _unwritten_strategy(words: Words) -> str:
    """The strategy that overrides choose without naming it. Raises ConfigError."""
    return compose.check(words).draft.choices.get("strategy", "strategy")
