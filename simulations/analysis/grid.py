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

Overrides = tuple[str, ...]
Pair = tuple[str, str]  # a setting and a method, by their labels
Label = Callable[["Sequence[Axis]", Sequence[str]], str]

_NO_EFFECT = "it does not change results"
_TUNING = "it is for --tune, and all cells of a comparison use the same test data"
_FIXED = {  # keys that must be equal in all cells, and why
    "engine": "the engine does not change results, and cells run inline",
    "checkpoint": _NO_EFFECT,
    "data.root": _NO_EFFECT,
    "data.download": _NO_EFFECT,
    "evaluate.on": _TUNING,
    "evaluate.validation": _TUNING,
}


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """The request of a comparison, with unchecked texts; `overrides` maps each pair to its command-line overrides."""

    overrides: Mapping[Pair, Overrides]  # without the seed
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
        return tuple(dict.fromkeys(setting for setting, _ in self.overrides))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(method for _, method in self.overrides))


@dataclass(frozen=True)
class Axis:
    """An override `key=value` with its list of values; `position` is its index among the overrides."""

    position: int
    key: str
    values: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The part of a cell that varies along the axis: `seed`, `method` or `setting`."""
        if self.key == "seed":
            return "seed"
        return "method" if self.key.split(".")[0] == "strategy" else "setting"

    @property
    def is_list(self) -> bool:
        return len(self.values) > 1


def parse(overrides: Sequence[str]) -> ComparisonRequest:
    """The grid that the overrides describe. Raises ConfigError with all their mistakes."""
    axes = read_axes(overrides)
    if not any(axis.is_list for axis in axes):
        mend = "give one, e.g. strategy=fedavg,fedgen seed=1..8; a single run: fedkd run"
        raise ConfigError("no override has a list of values, so there is no comparison", where=COMMAND_LINE, mend=mend)
    settings = list(_product([axis for axis in axes if axis.kind == "setting" and axis.is_list], _setting_label))
    methods = list(_product([axis for axis in axes if axis.kind == "method"], _method_label))
    # Without a name, the strategy comes from a preset, a file or the default.
    if all(not label or label.startswith(",") for label, _ in methods):
        name = _unwritten_strategy(_fill(overrides, axes, settings[0][1] | methods[0][1]))
        methods = [(name + label, chosen) for label, chosen in methods]
    return ComparisonRequest(
        overrides={
            (setting, method): _fill(overrides, axes, of_setting | of_method)
            for setting, of_setting in settings
            for method, of_method in methods
        },
        seeds=next((seeds(axis) for axis in axes if axis.kind == "seed"), SEEDS),
    )


def run_overrides(overrides: Overrides, seed: int) -> list[str]:
    """The overrides of one run: inline, because cells run side by side."""
    return [*overrides, f"seed={seed}", "engine=inline"]


def read_axes(overrides: Sequence[str]) -> list[Axis]:
    """The overrides `key=value`, each with its values. Raises ConfigError for invalid lists."""
    axes: list[Axis] = []
    mistakes: list[Mistake] = []
    for position, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        if not equals:
            continue  # a file, or a mistake that compose reports
        try:
            axes.append(Axis(position, key.strip(), lists.expand(key.strip(), text, COMMAND_LINE)))
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse([*mistakes, *_twice(axes), *_fixed(axes)])
    return axes


def seeds(axis: Axis) -> tuple[int, ...]:
    """The seeds of a list. Raises ConfigError."""
    for text in axis.values:
        if not text.strip().isdecimal():
            mend = "must be whole numbers from 0, e.g. seed=1..8 or seed=1,2,5"
            raise ConfigError(f"seed = {text}", where=COMMAND_LINE, mend=mend)
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
    """A label, and position -> value, for each combination; the last axis varies fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield label(axes, values), {axis.position: value for axis, value in zip(axes, values, strict=True)}


def _setting_label(axes: Sequence[Axis], values: Sequence[str]) -> str:
    """`alpha 0.1, clients 20`: the last parts of the keys, or whole keys if the last parts are ambiguous."""
    counts = Counter(axis.key.rpartition(".")[2] for axis in axes)
    names = [last if counts[last := axis.key.rpartition(".")[2]] == 1 else axis.key for axis in axes]
    return ", ".join(f"{name} {value.strip()}" for name, value in zip(names, values, strict=True))


def _method_label(axes: Sequence[Axis], values: Sequence[str]) -> str:
    """`fedgen, variant=paper`: the strategy, and the keys of the strategy that vary."""
    chosen = [(axis, value.strip()) for axis, value in zip(axes, values, strict=True)]
    name = next((value for axis, value in chosen if axis.key == "strategy"), "")
    varied = [f", {axis.key.partition('.')[2]}={value}" for axis, value in chosen if axis.is_list and "." in axis.key]
    return name + "".join(varied)


def _fill(overrides: Sequence[str], axes: Sequence[Axis], chosen: Mapping[int, str]) -> Overrides:
    """The overrides, with each list replaced by the chosen value, without the seed."""
    keys = {axis.position: axis.key for axis in axes}
    return tuple(
        f"{keys[index]}={chosen[index]}" if index in chosen else override
        for index, override in enumerate(overrides)
        if keys.get(index) != "seed"
    )


def _unwritten_strategy(overrides: Overrides) -> str:
    """The strategy that overrides choose without naming it. Raises ConfigError."""
    return compose.check(overrides).draft.choices.get("strategy", "strategy")
