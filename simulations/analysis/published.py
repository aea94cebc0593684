"""Published figures for a grid: those of named comparisons whose cells have the same configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fedkd.configuration import compose
from fedkd.configuration.resolved import Resolved
from simulations.analysis import grid, named_comparison
from simulations.analysis.grid import Asked, Pair, Words


def complete(asked: Asked, resolved: Mapping[Pair, Resolved]) -> Asked:
    """The request with the published figures that match it, and with their metric.

    Unchanged if there are none, or if the request names another metric.
    """
    if asked.published is not None:
        return asked
    for other in _related(asked):
        if asked.metric in ("", other.metric) and (found := _figures(asked, resolved, other)):
            return replace(asked, published=found, metric=other.metric, columns=other.columns)
    return asked


def _related(asked: Asked) -> Iterator[Asked]:
    """Named comparisons with published figures that share a preset with this request."""
    here = {_preset(words) for words in asked.words.values()} - {""}
    for name in named_comparison.names() if here else ():
        other = named_comparison.of_words([f"comparison={name}"])
        if other and other.published and here & {_preset(words) for words in other.words.values()}:
            yield other


def _figures(asked: Asked, resolved: Mapping[Pair, Resolved], other: Asked) -> dict[str, dict[str, str]]:
    """The figures of pairs that are the same experiment in both; resolves only pairs with shared presets."""
    presets = {_preset(words) for words in asked.words.values()}
    texts = {
        compose.resolve(grid.played(words, asked.seeds[0])).digest(): text
        for pair, words in other.words.items()
        if _preset(words) in presets and (text := (other.published or {}).get(pair[0], {}).get(pair[1]))
    }
    found: dict[str, dict[str, str]] = {}
    for (setting, method), its in resolved.items():
        if text := texts.get(its.digest()):
            found.setdefault(setting, {})[method] = text
    return found


def _preset(words: Words) -> str:
    """The last preset among the overrides, or empty text."""
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith("preset=")), "")
