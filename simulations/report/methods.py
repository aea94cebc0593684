"""Each method's hyper-parameters beside their defaults: of the setting that was chosen in conf, else of the code."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from simulations.analysis.result import Verdict
from simulations.analysis.run_record import RunRecord
from simulations.report import facts, number_text
from simulations.report.summary_table import Table

_HEAD = "strategy."
_NAMES = ("name", "client")  # of the halves
_TOLD = (*_NAMES, "setting")  # by the name of the method, and by its first row where the halves have other names
_ABSENT = object()


def table(verdict: Verdict) -> Table | None:
    """First what is not as by default, marked, a row each; then the rest in one row."""
    rows = [row for method in verdict.question.methods for row in _of_method(verdict, method)]
    if not rows:
        return None
    note = "* differs from the default, which is that of the strategy's file in conf, else of its code."
    return Table(("strategy", "hyper-parameter", "value", "default"), tuple(rows), "Values of each method", note)


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
        value, known = _value(key, runs), default.get(key.removeprefix(_HEAD), _ABSENT)
        if known is not _ABSENT and value == facts.plain(known) and key not in tuned:
            plain.append(f"{key.removeprefix(_HEAD)} {value}")
            continue
        mark = " *" if known is not _ABSENT and value != facts.plain(known) else ""
        how = " (tuned)" if key in tuned else ""
        yield method, key.removeprefix(_HEAD) + mark, value + how, "" if known is _ABSENT else facts.plain(known)
    for key in sorted(key for key in tuned if not _is_own(key)):
        usual = facts.plain(facts.defaults().get(key))
        value = _value(key, runs)
        yield method, key + (" *" if value != usual else ""), f"{value} (tuned)", usual
    if plain:
        yield method, "at the default", ", ".join(plain), ""


def _is_own(key: str) -> bool:
    return key.startswith(_HEAD) and key.removeprefix(_HEAD) not in _TOLD


def _choices(verdict: Verdict, method: str) -> Iterator[Any]:
    found = verdict.question.tuned
    yield from (choice for choice in (found.choices if found else ()) if choice.method == method)


def _value(key: str, runs: Sequence[RunRecord]) -> str:
    """One value, or each with the settings that have it: values may be tuned for each."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        found.setdefault(facts.plain(run.config.get(key)), {})[run.setting or f"seed {run.seed}"] = None
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} ({number_text.listing(list(places), 4)})" for value, places in found.items())


def _halves(config: Mapping[str, Any], option: str) -> str:
    """`fedprox: server fedavg, client fedprox`."""
    server, client = (str(config.get(_HEAD + half, "")) for half in _NAMES)
    name = option or server
    is_plain = server == name and client in (name, "supervised")
    return name if is_plain else f"{name}: server half {server}, client half {client}"


def _option(config: Mapping[str, Any], said: str) -> str:
    """The strategy of conf that a configuration has chosen; older folders say only which halves it has."""
    from fedkd.configuration import compose

    halves = tuple(config.get(_HEAD + half) for half in _NAMES)
    alike = [name for name in compose.options("strategy") if _its_halves(name) == halves]
    return max(alike, key=lambda name: (name == said, _agreeing(name, config)), default="")


def _agreeing(option: str, config: Mapping[str, Any]) -> int:
    from fedkd.configuration import compose

    return sum(config.get(_HEAD + key) == value for key, value in compose.node("strategy", option).items())


@cache
def _its_halves(option: str) -> tuple[str, str]:
    from fedkd.configuration import compose

    node = compose.node("strategy", option)
    return str(node["name"]), str(node.get("client", "supervised"))


@cache
def _defaults(option: str, server: str, client: str) -> dict[str, Any]:
    """Key -> value of both halves' code, then what the file in conf says; empty where only an import could tell."""
    from fedkd import strict_yaml
    from fedkd.configuration import compose, reference

    keys = [*(reference.of_half("strategies", server) or ()), *(reference.of_half("clients", client) or ())]
    found: dict[str, Any] = {"variant": None}
    found |= {key.name: strict_yaml.scalar(key.default, "") for key in keys if key.default}
    return found | (compose.node("strategy", option) if option else {})
