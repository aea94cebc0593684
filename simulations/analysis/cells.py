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
from simulations.analysis.grid import ComparisonRequest, Overrides, Pair
from simulations.analysis.metric import Metric

MOST = 2000  # cells

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Grid(ComparisonRequest):
    """A complete request; `resolved` is the configuration of each pair under the first seed."""

    primary: Metric
    resolved: Mapping[Pair, Resolved]

    def configuration(self, pair: Pair, seed: int) -> Resolved:
        """The configuration of one cell."""
        resolved = self.resolved[pair]
        return replace(resolved, config=replace(resolved.config, seed=seed))


def ask(overrides: Sequence[str], tune: Sequence[str] = (), **options: Any) -> ComparisonRequest:
    """The request in overrides; `tune` and `options` (metric, baseline, target, tune_seeds) replace a file's values.

    Raises ConfigError.
    """
    tuned = [override for override in overrides if override.startswith(candidates.PREFIX)]
    rest = [override for override in overrides if not override.startswith(candidates.PREFIX)]
    request = named_comparison.parse(rest) or grid.parse(rest)
    request = replace(request, tune=candidates.merged(request.tune, [*tuned, *tune]))
    return replace(request, **{key: value for key, value in options.items() if value is not None})


def check(
    request: ComparisonRequest,
    announce: Callable[[], None] = lambda: None,
    cache: dict[Overrides, Resolved] | None = None,
) -> Grid:
    """The configuration of each cell. Raises ConfigError with the mistakes of all cells at once.

    Calls `announce` when all checks that need no torch have passed. `cache` maps overrides to configurations: known
    ones are reused, new ones added.
    """
    cache = {} if cache is None else cache
    _check_size(request)
    errors.refuse(_lacking(request))
    first_setting, first_method = request.settings[0], request.methods[0]
    samples = {pair: own for pair, own in request.overrides.items() if first_setting in pair or first_method in pair}
    composed = _map(samples, lambda overrides: compose.check(_first_run(request, overrides)))
    strategies = {pair[1]: checked.draft.choices.get("strategy", "") for pair, checked in composed.items()}
    if request.metric:
        metric.parse(request.metric, request.where)  # before torch
    baseline = _baseline(request, strategies)
    announce()
    by_overrides = {request.overrides[pair]: checked for pair, checked in composed.items()}

    def resolve(overrides: Overrides) -> Resolved:
        if overrides not in cache:
            known = by_overrides.get(overrides)
            cache[overrides] = known.resolve() if known else compose.resolve(_first_run(request, overrides))
        return cache[overrides]

    resolved = _map(request.overrides, resolve)
    _check_different(resolved, request)
    errors.refuse(_unequal_evaluation(resolved, request))
    request = published.complete(request, resolved)
    primary = metric.parse(request.metric or _default_metric(strategies.values()), request.where)
    facts = {field.name: getattr(request, field.name) for field in fields(ComparisonRequest)}
    return Grid(**facts | {"metric": str(primary), "baseline": baseline}, primary=primary, resolved=resolved)


def _first_run(request: ComparisonRequest, overrides: Overrides) -> list[str]:
    return grid.run_overrides(overrides, request.seeds[0])


def _check_size(request: ComparisonRequest) -> None:
    size = len(request.overrides) * len(request.seeds)
    if size == 1:
        mend = "give lists, e.g. strategy=fedavg,fedgen seed=1..8; a single run: fedkd run"
        raise ConfigError("the grid has one run, so there is nothing to compare", where=request.where, mend=mend)
    if size > MOST:
        parts = f"{len(request.settings)} settings x {len(request.methods)} methods x {len(request.seeds)} seeds"
        raise ConfigError(f"the grid has {size} runs ({parts}), at most {MOST} are allowed", where=request.where)


def _map(by_pair: Mapping[Pair, Overrides], function: Callable[[Overrides], _T]) -> dict[Pair, _T]:
    """Apply a function to the overrides of each pair. Raises ConfigError with the mistakes of all pairs, each once."""
    values: dict[Pair, _T] = {}
    mistakes: list[Mistake] = []
    for pair, overrides in by_pair.items():
        try:
            values[pair] = function(overrides)
        except ConfigError as error:
            mistakes += error.mistakes
    errors.refuse(mistakes)
    return values


def _lacking(request: ComparisonRequest) -> Iterator[Mistake]:
    """Keys of `strategy` that the overrides set for all methods, but that some methods lack."""
    keys = [
        {key for key in map(_key, overrides) if key.startswith("strategy.")} for overrides in request.overrides.values()
    ]
    strategies = dict.fromkeys(name for overrides in request.overrides.values() if (name := _strategy(overrides)))
    for key in sorted(set.intersection(*keys)):
        lacking = [name for name in strategies if not _has(name, key.partition(".")[2])]
        if lacking and len(strategies) > 1:
            mend = f"compare only strategies that have it: fedkd config schema strategy={lacking[0]}"
            problem = f"{key} is given to all, and {', '.join(lacking)} {'lacks' if len(lacking) == 1 else 'lack'} it"
            yield Mistake(problem, request.where, mend)


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _strategy(overrides: Overrides) -> str:
    """The last option of conf/strategy among the overrides, or empty text."""
    names = [override.partition("=")[2].strip() for override in overrides if _key(override) == "strategy"]
    return names[-1] if names and names[-1] in compose.options("strategy") else ""


def _has(strategy: str, key: str) -> bool:
    """Whether a strategy has a key, as far as its source shows."""
    node = compose.node("strategy", strategy)
    options = reference.of_halves(str(node["name"]), str(node.get("client", "supervised")))
    return options is None or key in {f.name for f in fields(AlgorithmConfig)} | {option.name for option in options}


def _default_metric(strategies: Iterable[str]) -> str:
    """The last ten rounds: of the global student if all strategies serve one, else of the clients' own students."""
    nodes = [compose.node("strategy", name) for name in strategies if name in compose.options("strategy")]
    return str(metric.default(str(reference.traits(str(node.get("name"))).get("serves")) for node in nodes))


def _baseline(request: ComparisonRequest, strategies: Mapping[str, str]) -> str:
    """The method to compare the others with: the named one, else FedAvg, else the first."""
    name = request.baseline.casefold()
    if not name:
        fedavg = [method for method in request.methods if strategies[method] == "fedavg"]
        return next((method for method in fedavg if method.casefold() == "fedavg"), (fedavg or request.methods)[0])
    matches = [method for method in request.methods if method.casefold() == name]
    if not matches:
        mend = validate.one_of(request.baseline, request.methods)
        raise ConfigError(f"baseline '{request.baseline}' is not among the methods", where=request.where, mend=mend)
    return request.baseline if request.baseline in matches else matches[0]


def _check_different(resolved: Mapping[Pair, Resolved], request: ComparisonRequest) -> None:
    """Raises ConfigError if two cells are the same run."""
    known: dict[str, Pair] = {}
    mistakes = []
    for pair, configuration in resolved.items():
        first = known.setdefault(configuration.digest(), pair)
        if first != pair:
            names = (" in ".join(f"'{part}'" for part in reversed(cell) if part) for cell in (first, pair))
            problem = f"{' and '.join(names)} are the same experiment"
            mistakes.append(Mistake(problem, request.where, "remove one, or state the difference"))
    errors.refuse(mistakes)


def _unequal_evaluation(resolved: Mapping[Pair, Resolved], request: ComparisonRequest) -> Iterator[Mistake]:
    """Methods evaluated differently from the first: rules over rounds favour methods evaluated more often."""
    for setting, method in resolved:
        first = resolved[setting, request.methods[0]].config.evaluate
        own = resolved[setting, method].config.evaluate
        for name in (field.name for field in fields(own) if getattr(own, field.name) != getattr(first, field.name)):
            values = f"{getattr(own, name)}, '{request.methods[0]}' has {getattr(first, name)}"
            problem = f"'{method}' has evaluate.{name} = {values}: all methods must be evaluated alike"
            yield Mistake(problem, request.where, f"set evaluate.{name} in 'base' or in a setting, for all methods")
