"""`fedkd bench` of several methods: the cost of a round of each, compared with the baseline's."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedkd.errors import FedkdError
from simulations.analysis import cells, lists
from simulations.analysis.cells import Grid
from simulations.analysis.grid import COMMAND_LINE

if TYPE_CHECKING:
    from simulations.assemble import Assembly

LIMIT = 1.3  # at most: the clients' seconds of a method over the baseline's


def has_several(overrides: Sequence[str]) -> bool:
    """Whether overrides name several configurations: `comparison=`, or a list of values. Raises ConfigError."""
    pairs = [(key.strip(), text) for key, equals, text in (override.partition("=") for override in overrides) if equals]
    return any(key == "comparison" or len(lists.expand(key, text, COMMAND_LINE)) > 1 for key, text in pairs)


def check(overrides: Sequence[str]) -> Grid:
    """The methods and settings that the overrides describe, as for `fedkd compare`; only the first seed is used.

    Raises ConfigError.
    """
    return cells.check(cells.ask(overrides))


def measure(grid: Grid, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """`count` rounds of each method and of the baseline, in turns, setting after setting.

    `costs` has a row per method: median seconds of the clients' work and of the server, and the ratio of the clients'
    seconds to the baseline's (median and quartiles of the pairs). The baseline against itself shows the noise.
    `missing` holds the reason for each method that failed.
    """
    from simulations.bench import measures

    costs: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for setting in grid.settings:
        baseline = _assembled(grid, setting, grid.baseline, count)
        for method in (method for method in grid.methods if (setting, method) in grid.overrides):
            name = ", ".join(filter(None, (method, setting)))
            say(f"{name}: {count} rounds of this method and of {grid.baseline}, in turns")
            try:
                other = _assembled(grid, setting, method, count)
                pairs = measures.in_turns(baseline, other, count)
            except FedkdError as error:
                missing[name] = error.what
            else:
                costs.append({"setting": setting, "method": method, **_row(pairs)})
    return {"rounds": count, "baseline": grid.baseline, "costs": costs, "limit": LIMIT, "missing": missing}


def _assembled(grid: Grid, setting: str, method: str, count: int) -> "Assembly":
    from simulations.bench import measures

    return measures.assembled(grid.configuration((setting, method), grid.seeds[0]).config, count)


def _row(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, float]:
    from simulations.bench import measures

    medians = measures.medians(own for _, own in pairs)
    ratios = [own["busy"] / base["busy"] for base, own in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"clients": medians["busy"], "server": medians["server"], "ratio": middle, "low": low, "high": high}
