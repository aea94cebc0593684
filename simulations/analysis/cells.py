"""Cells of a comparison, all checked before anything runs. Free of torch until the keys of strategies need it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from fedkd import errors
from fedkd.config import AlgorithmConfig
from fedkd.configuration import compose, reference, validate
from fedkd.configuration.resolved import Resolved
from fedkd.errors import ConfigError, Mistake
from simulations.analysis import candidates, grid, metric, named_comparison, published
from simulations.analysis.grid import Asked, Pair, Words
from simulations.analysis.metric import Metric

MOST = 2000  # cells

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Grid(Asked):
    """A complete request; `resolved` is the configuration of each pair under the first seed."""

    primary: Metric
    resolved: Mapping[Pair, Resolved]

    def configuration(self, pair: Pair, seed: int) -> Resolved:
        """The configuration of one cell."""
        found = self.resolved[pair]
        return replace(found, config=replace(found.config, seed=seed))


def ask(words: Sequence[str], tune: Sequence[str] = (), **options: Any) -> Asked:
    """The request in overrides; `tune` and `options` (metric, baseline, target, tune_seeds) replace a file's values.

    Raises ConfigError.
    """
    tuned = [word for word in words if word.startswith(candidates.PREFIX)]
    rest = [word for word in words if not word.startswith(candidates.PREFIX)]
    asked = named_comparison.of_words(rest) or grid.of_words(rest)
    asked = replace(asked, tune=candidates.later(asked.tune, [*tuned, *tune]))
    return replace(asked, **{key: value for key, value in options.items() if value is not None})


def check(asked: Asked, announce: Callable[[], None] = lambda: None, made: dict[Words, Resolved] | None = None) -> Grid:
    """The configuration of each cell. Raises ConfigError with the mistakes of all cells at once.

    Calls `announce` when all checks that need no torch have passed. `made` caches configurations by overrides: known
    ones are reused, new ones added.
    """
    made = {} if made is None else made
    _check_size(asked)
    errors.refuse(_lacking(asked))
    some = {pair: words for pair, words in asked.words.items() if asked.settings[0] in pair or asked.methods[0] in pair}
    composed = _each(some, lambda words: compose.check(grid.played(words, asked.seeds[0])))
    strategies = {pair[1]: found.draft.choices.get("strategy", "") for pair, found in composed.items()}
    if asked.metric:
        metric.parse(asked.metric, asked.where)  # before torch
    baseline = _baseline(asked, strategies)
    announce()
    begun = {asked.words[pair]: found for pair, found in composed.items()}

    def resolve(words: Words) -> Resolved:
        if words not in made:
            its = begun.get(words)
            made[words] = its.resolve() if its else compose.resolve(grid.played(words, asked.seeds[0]))
        return made[words]

    resolved = _each(asked.words, resolve)
    _check_different(resolved, asked)
    errors.refuse(_evaluated_otherwise(resolved, asked))  # each once, not by setting
    asked = published.complete(asked, resolved)
    primary = metric.parse(asked.metric or _default_metric(strategies.values()), asked.where)
    facts = {field.name: getattr(asked, field.name) for field in fields(Asked)}
    return Grid(**facts | {"metric": str(primary), "baseline": baseline}, primary=primary, resolved=resolved)


def _check_size(asked: Asked) -> None:
    size = len(asked.words) * len(asked.seeds)
    if size == 1:
        mend = "give lists, e.g. strategy=fedavg,fedgen seed=1..8; a single run: fedkd run"
        raise ConfigError("the grid has one run: there is nothing to compare it with", where=asked.where, mend=mend)
    if size > MOST:
        parts = f"{len(asked.settings)} settings x {len(asked.methods)} methods x {len(asked.seeds)} seeds"
        raise ConfigError(f"the grid has {size} runs ({parts}), at most {MOST} can be", where=asked.where)


def _each(words: Mapping[Pair, Words], make: Callable[[Words], _T]) -> dict[Pair, _T]:
    """Apply `make` to the overrides of each pair. Raises ConfigError with the mistakes of all pairs, each once."""
    made: dict[Pair, _T] = {}
    mistakes: list[Mistake] = []
    for pair, its in words.items():
        try:
            made[pair] = make(its)
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse(mistakes)
    return made


def _lacking(asked: Asked) -> Iterator[Mistake]:
    """Keys of `strategy` that the overrides set for all methods, but that some methods lack."""
    keys = [{key for key in map(_key, words) if key.startswith("strategy.")} for words in asked.words.values()]
    strategies = dict.fromkeys(name for words in asked.words.values() if (name := _strategy(words)))
    for key in sorted(set.intersection(*keys)):
        lacking = [name for name in strategies if not _has(name, key.partition(".")[2])]
        if lacking and len(strategies) > 1:
            mend = f"compare only strategies that have it: fedkd config schema strategy={lacking[0]}"
            what = f"{key} is given to all, and {', '.join(lacking)} {'lacks' if len(lacking) == 1 else 'lack'} it"
            yield Mistake(what, asked.where, mend)


def _key(word: str) -> str:
    return word.partition("=")[0].strip()


def _strategy(words: Words) -> str:
    """The last option of conf/strategy among the overrides, or empty text."""
    named_ = [word.partition("=")[2].strip() for word in words if _key(word) == "strategy"]
    return named_[-1] if named_ and named_[-1] in compose.options("strategy") else ""


def _has(strategy: str, key: str) -> bool:
    """Whether a strategy has a key, as far as its source shows."""
    node = compose.node("strategy", strategy)
    keys = reference.of_halves(str(node["name"]), str(node.get("client", "supervised")))
    return keys is None or key in {field.name for field in fields(AlgorithmConfig)} | {each.name for each in keys}


def _default_metric(strategies: Iterable[str]) -> str:
    """The last ten rounds: of the global student if all strategies serve one, else of the clients' own."""
    nodes = [compose.node("strategy", name) for name in strategies if name in compose.options("strategy")]
    return str(metric.default(str(reference.traits(str(node.get("name"))).get("serves")) for node in nodes))


def _baseline(asked: Asked, strategies: Mapping[str, str]) -> str:
    """The method to compare the others with: the named one, else FedAvg, else the first."""
    wanted = asked.baseline.casefold()
    if not wanted:
        plain = [method for method in asked.methods if strategies[method] == "fedavg"]
        return next((method for method in plain if method.casefold() == "fedavg"), (plain or asked.methods)[0])
    found = [method for method in asked.methods if method.casefold() == wanted]
    if not found:
        mend = validate.one_of(asked.baseline, asked.methods)
        raise ConfigError(f"baseline '{asked.baseline}' is not among the methods", where=asked.where, mend=mend)
    return asked.baseline if asked.baseline in found else found[0]


def _check_different(resolved: Mapping[Pair, Resolved], asked: Asked) -> None:
    """Raises ConfigError if two cells are the same run."""
    known: dict[str, Pair] = {}
    mistakes = []
    for pair, found in resolved.items():
        first = known.setdefault(found.digest(), pair)
        if first != pair:
            names = (" in ".join(f"'{part}'" for part in reversed(each) if part) for each in (first, pair))
            what = f"{' and '.join(names)} are the same experiment"
            mistakes.append(Mistake(what, asked.where, "leave one out, or say what differs"))
    errors.refuse(mistakes)


def _evaluated_otherwise(resolved: Mapping[Pair, Resolved], asked: Asked) -> Iterator[Mistake]:
    """Methods evaluated differently from the first: rules over rounds favour those evaluated more often."""
    for setting, method in resolved:
        first = resolved[setting, asked.methods[0]].config.evaluate
        own = resolved[setting, method].config.evaluate
        for name in (field.name for field in fields(own) if getattr(own, field.name) != getattr(first, field.name)):
            values = f"{getattr(own, name)}, '{asked.methods[0]}' has {getattr(first, name)}"
            what = f"'{method}' has evaluate.{name} = {values}: methods of a comparison are evaluated alike"
            yield Mistake(what, asked.where, f"set evaluate.{name} in 'base' or in a setting, for all methods")
