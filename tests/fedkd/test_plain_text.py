"""Text that somebody else has chosen."""

import json

import pytest

from fedkd import engine, plain_text
from fedkd.configuration import compose
from fedkd.engine import Job
from fedkd.errors import ConfigError
from fedkd.payload import Payload
from fedkd.record import ledger


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066", "\u200f", "\ud800"])
def test_signs_that_steer_are_shown_as_their_codes_and_refused_in_a_configuration(sign):
    shown = plain_text.printable(f"fed{sign}avg")
    assert shown.isprintable()
    assert shown.startswith("fed\\")
    with pytest.raises(ConfigError, match=rf"must not have the character U\+{ord(sign):04X}"):
        compose.resolve([f'data.root="{plain_text.printable(f"a{sign}b")}"'])


@pytest.mark.parametrize("text", ["läuft", "数据", "a\nb", "a\tb", "👩‍🔬", "x" * plain_text.LONGEST])
def test_text_of_any_language_may_be_in_a_configuration(text):
    assert plain_text.problem(text) == ""


@pytest.mark.parametrize(
    "words", [["data.labels=[a, '" + "x" * 5000 + "']"], ["students.mix=[" + "x" * 5000 + "]"], ["a" * 5000 + "=1"]]
)
def test_names_in_a_configuration_are_not_endless_and_the_error_is_short(words):
    with pytest.raises(ConfigError, match="must have at most 4096 characters") as caught:
        compose.resolve(words)
    assert len(str(caught.value)) < 1000


def test_a_value_that_is_no_yaml_is_quoted_in_part():
    with pytest.raises(ConfigError) as caught:
        compose.resolve(["a={" + "x" * 5000])
    assert len(str(caught.value)) < 1000


def test_an_error_cannot_steer_the_terminal_that_shows_it():
    assert (
        str(ConfigError("no \x1b[2J", where="a\u202eb", mend="c\nd")) == "config: no \\x1b[2J (a\\u202eb)\n       c\nd"
    )


def test_what_an_exception_says_cannot_steer_a_terminal_and_has_an_end():
    job = Job(task="train", client=0, round=1, payload=Payload())
    found = engine.failure(job, ValueError("\x1b[2J" + "x" * 10**6))
    assert found.what.startswith("ValueError: \\x1b[2Jxxx")
    assert len(found.what) <= engine.LONGEST_TEXT


def test_half_a_surrogate_pair_is_written_to_the_ledger_as_its_code():
    row = {"what": "no \udcff.png"}
    assert json.loads(ledger.encode(row)) == row


def test_what_a_picture_gets_is_short_and_printable_all_through():
    found = plain_text.shown({"a\x00": ["x" * 20_000, 1, None, {"b": "\ud800"}]})
    assert found == {"a\\x00": ["x" * 199 + "…", 1, None, {"b": "\\ud800"}]}


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd", "'+cmd"),
        ("-cmd", "'-cmd"),
        ("\t=1", "'\\t=1"),
        ("-1.5", "-1.5"),
        ("+1e-3", "+1e-3"),
        ("alpha 0.1", "alpha 0.1"),
        ("a\u202eb", "a\\u202eb"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_no_spreadsheet_takes_text_for_a_formula(value, cell):
    assert plain_text.cell(value) == cell
