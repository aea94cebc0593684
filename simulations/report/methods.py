"""Each method's hyper-parameters and their defaults: those of the chosen file in conf, else of the code."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from simulations.analysis.result import Verdict
from simulations.analysis.run_record import RunRecord
from simulations.report import facts, number_text
from simulations.report.summary_table import Table

_HEAD = "strategy."
_NAMES = ("name", "client")  # of the halves
_SHOWN = (*_NAMES, "setting")  # the method's name and its first row already show these


def table(verdict: Verdict) -> Table | None:
    """A row per value that differs from its default, marked; then one row with all other values."""
    rows = [row for method in verdict.question.methods for row in _of_method(verdict, method)]
    if not rows:
        return None
    note = "* differs from the default: that of the strategy's file in conf, else of its code."
    return Table(("strategy", "hyper-parameter", "value", "default"), tuple(rows), "Values per method", note)


def _of_method(verdict: Verdict, method: str) -> Iterator[tuple[str, ...]]:
    runs = [m for result in verdict.results.values() if result.method == method for m in result.runs if m.config]
    if not runs:
        return
    config = runs[0].config
    option = _option(config, str(runs[0].info.get("strategy", "")))
    if (halves := _halves(config, option)) != method:
        yield method, "strategy", halves, ""
    default = _defaults(option, *(str(config.get(_HEAD + half, "")) for half in _NAMES))
    tuned = {key for choice in _choices(verdict, method) for key in choice.keys}
    plain = []
    for key in dict.fromkeys(key for run in runs for key in run.config if _is_own(key)):
        name, value = key.removeprefix(_HEAD), _value(key, runs)
        usual = facts.plain(default[name]) if name in default else ""
        if name in default and value == usual and key not in tuned:
            plain.append(f"{name} {value}")
            continue
        mark = " *" if name in default and value != usual else ""
        yield method, name + mark, value + (" (tuned)" if key in tuned else ""), usual
    for key in sorted(key for key in tuned if not _is_own(key)):
        usual = facts.plain(facts.defaults().get(key))
        value = _value(key, runs)
        yield method, key + (" *" if value != usual else ""), f"{value} (tuned)", usual
    if plain:
        yield method, "at the default", ", ".join(plain), ""


def _is_own(key: str) -> bool:
    return key.startswith(_HEAD) and key.removeprefix(_HEAD) not in _SHOWN


def _choices(verdict: Verdict, method: str) -> Iterator[Any]:
    tuned = verdict.question.tuned
    yield from (choice for choice in (tuned.choices if tuned else ()) if choice.method == method)


def _value(key: str, runs: Sequence[RunRecord]) -> str:
    """One value, or each value with its settings: each setting may have its own tuned value."""
    places: dict[str, dict[str, None]] = {}
    for run in runs:
        places.setdefault(facts.plain(run.config.get(key)), {})[run.setting or f"seed {run.seed}"] = None
    if len(places) == 1:
        return next(iter(places))
    return "; ".join(f"{value} ({number_text.listing(list(names), 4)})" for value, names in places.items())


def _halves(config: Mapping[str, Any], option: str) -> str:
    """`fedprox: server fedavg, client fedprox`."""
    server, client = (str(config.get(_HEAD + half, "")) for half in _NAMES)
    name = option or server
    is_plain = server == name and client in (name, "supervised")
    return name if is_plain else f"{name}: server half {server}, client half {client}"


def _option(config: Mapping[str, Any], strategy: str) -> str:
    """The strategy in conf that a configuration has chosen; older folders record only its halves."""
    from fedkd.configuration import compose

    halves = tuple(config.get(_HEAD + half) for half in _NAMES)
    alike = [name for name in compose.options("strategy") if _halves_of(name) == halves]
    return max(alike, key=lambda name: (name == strategy, _agreeing(name, config)), default="")


def _agreeing(option: str, config: Mapping[str, Any]) -> int:
    from fedkd.configuration import compose

    return sum(config.get(_HEAD + key) == value for key, value in compose.node("strategy", option).items())


@cache
def _halves_of(option: str) -> tuple[str, str]:
    from fedkd.configuration import compose

    node = compose.node("strategy", option)
    return str(node["name"]), str(node.get("client", "supervised"))


@cache
def _defaults(option: str, server: str, client: str) -> dict[str, Any]:
    """Key -> default, from both halves' code and then the file in conf; empty if only an import could tell."""
    from fedkd import strict_yaml
    from fedkd.configuration import compose, reference

    keys = [*(reference.of_half("strategies", server) or ()), *(reference.of_half("clients", client) or ())]
    from_code = {key.name: strict_yaml.scalar(key.default, "") for key in keys if key.default}
    return {"variant": None} | from_code | (compose.node("strategy", option) if option else {})
