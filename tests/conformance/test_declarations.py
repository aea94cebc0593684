"""What each server half says of itself: literals that a listing can read, and no more than is true."""

from pathlib import Path

import algorithms
import pytest

from fedkd.configuration import plugins
from fedkd.payload import KINDS
from fedkd.strategy import Strategy

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"proxy": {"no", "yes", "optional"}, "serves": {"global", "personal", "both"}}
TYPES = {
    "needs": frozenset,
    "gives": frozenset,
    "exchanges": int,
    "knowledge": str,
    "proxy": str,
    "works_across_students": bool,
    "serves": str,
    "paper": str,
    "pools_data": bool,
}


@pytest.fixture(params=plugins.modules("strategies"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_what_it_says_of_itself_are_plain_literals_of_the_allowed_values(name: str):
    said = {key: value for key, value in algorithms.declared(name).items() if key in TYPES}
    assert said.keys() >= {"needs", "gives", "paper"}
    assert {key for key, value in said.items() if type(value) is not TYPES[key]} == set()
    assert all(said[key] in allowed for key, allowed in ALLOWED.items() if key in said)
    assert said["needs"] | said["gives"] <= set(KINDS)
    assert said.get("exchanges", 1) >= 1
    assert said["paper"]
    assert said.get("knowledge", "weights")


def test_the_source_says_what_the_class_says(name: str):
    found = plugins.strategy(name)
    for key, value in algorithms.declared(name).items():
        if key in TYPES:
            assert getattr(found, key) == value


def test_every_word_about_a_strategy_is_one_that_is_checked_here():
    assert set(Strategy.__annotations__) == set(TYPES)


def test_only_a_half_that_names_its_value_reads_the_number_of_rounds():
    """Else a run that is made longer would silently differ from one that was as long from the start."""
    sources = {path: path.read_text() for room in ("strategies", "clients") for path in (ROOT / room).glob("*.py")}
    reading = {path.stem for path, text in sources.items() if "problem.rounds" in text}
    assert reading == {path.stem for path, text in sources.items() if "def set_by_last_round" in text} == {"fedd2s"}


def trails(name: str) -> list[algorithms.Trail]:
    """Those of all algorithms with this server half."""
    return [algorithms.trail(words) for words in algorithms.words() if algorithms.server(words) == name]


def test_each_is_the_server_half_of_an_algorithm(name: str):
    assert name in map(algorithms.server, algorithms.words())


def test_each_kind_that_it_declares_crosses_in_one_of_its_algorithms(name: str):
    """But numbers, which may be for a switch that no algorithm sets."""
    found = plugins.strategy(name)
    exchanges = [exchange for trail in trails(name) for exchange in trail.exchanges]
    sent = {kind for exchange in exchanges for payload in exchange.payloads.values() for kind in payload.kinds()}
    got = {kind for exchange in exchanges for reply in exchange.replies for kind in reply.payload.kinds()}
    assert (sent | {"numbers"}, got) == (found.gives | {"numbers"}, found.needs)


def test_it_has_as_many_exchanges_as_one_of_its_algorithms_needs(name: str):
    most = max(trail.strategy.num_exchanges(number) for trail in trails(name) for number in (1, 2, 3))
    assert most == plugins.strategy(name).exchanges
