"""Published figures for a grid: those of named comparisons whose cells have the same configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fedkd.configuration import compose
from fedkd.configuration.resolved import Resolved
from simulations.analysis import grid, named_comparison
from simulations.analysis.grid import ComparisonRequest, Overrides, Pair


def complete(request: ComparisonRequest, resolved: Mapping[Pair, Resolved]) -> ComparisonRequest:
    """The request with the published figures that match it, and with their metric.

    Unchanged if there are none, or if the request names another metric.
    """
    if request.published is not None:
        return request
    for other in _related(request):
        if request.metric in ("", other.metric) and (figures := _figures(request, resolved, other)):
            return replace(request, published=figures, metric=other.metric, columns=other.columns)
    return request


def _related(request: ComparisonRequest) -> Iterator[ComparisonRequest]:
    """Named comparisons with published figures that share a preset with this request."""
    presets = {_preset(overrides) for overrides in request.overrides.values()} - {""}
    for name in named_comparison.names() if presets else ():
        other = named_comparison.parse([f"comparison={name}"])
        if other and other.published and presets & {_preset(overrides) for overrides in other.overrides.values()}:
            yield other


def _figures(
    request: ComparisonRequest, resolved: Mapping[Pair, Resolved], other: ComparisonRequest
) -> dict[str, dict[str, str]]:
    """The figures of pairs that are the same experiment in both; resolves only pairs with shared presets."""
    presets = {_preset(overrides) for overrides in request.overrides.values()}
    texts = {
        compose.resolve(grid.run_overrides(overrides, request.seeds[0])).digest(): text
        for pair, overrides in other.overrides.items()
        if _preset(overrides) in presets and (text := (other.published or {}).get(pair[0], {}).get(pair[1]))
    }
    figures: dict[str, dict[str, str]] = {}
    for (setting, method), configuration in resolved.items():
        if text := texts.get(configuration.digest()):
            figures.setdefault(setting, {})[method] = text
    return figures


def _preset(overrides: Overrides) -> str:
    """The last preset among the overrides, or empty text."""
    return next((override.partition("=")[2] for override in reversed(overrides) if override.startswith("preset=")), "")
