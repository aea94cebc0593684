"""Lists and ranges in values: what splits, what does not, and what is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import strict_yaml
from fedkd.errors import ConfigError
from simulations.analysis import lists

PLAIN = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats(-1e3, 1e3).map(repr),
    st.from_regex(r"[a-z][a-z_-]{0,8}", fullmatch=True),
)
VALUES = st.recursive(
    st.one_of(PLAIN, PLAIN.map(lambda text: f'"{text}, {text}"'), PLAIN.map(lambda text: f"'{text},{text}'")),
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda texts: st.sampled_from(
            [f"[{', '.join(texts)}]", "{" + ", ".join(f"k{i}: {t}" for i, t in enumerate(texts)) + "}"]
        )
    ),
    max_leaves=6,
)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_joined_values_are_split_again(values):
    assert lists.split(",".join(values)) == values
    assert lists.split(" , ".join(values)) == values


@given(st.lists(VALUES, min_size=1, max_size=5, unique_by=lambda text: repr(strict_yaml.scalar(text, ""))))
def test_a_list_stands_for_its_values_and_a_single_value_for_itself(values):
    assert lists.expand("key", ",".join(values), "here") == tuple(values)


@given(st.integers(-50, 50), st.integers(0, 30))
def test_a_range_stands_for_every_whole_number_in_it(first, size):
    expected = tuple(map(str, range(first, first + size + 1)))
    assert lists.expand("seed", f"{first}..{first + size}", "here") == expected
    assert lists.expand("seed", f"{first}..{first + size},{first + size + 1}", "here") == (
        *expected,
        str(first + size + 1),
    )


@given(st.text(max_size=30))
def test_any_other_text_is_either_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert lists.expand("key", text, "here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8..1", "runs backwards"),
        ("1,,2", "empty value"),
        ("a,b,", "empty value"),
        ("0.1,0.10", "has 0.10 twice"),
        ("1..3,2", "has 2 twice"),
        ("1..100000000000", "at most 1000"),
        ("1..999,2000..2999", "at most 1000"),
    ],
)
def test_lists_that_make_no_sense_are_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        lists.expand("seed", text, "here")


def test_an_apostrophe_within_a_word_is_no_quote():
    assert lists.split("it's,theirs") == ["it's", "theirs"]
