import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import strict_yaml
from fedkd.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text().filter(lambda text: "${" not in text)
)


def read(text):
    return strict_yaml.read(text, "my.yaml").plain


@given(value=st.recursive(SCALARS, st.lists, max_leaves=5))
def test_what_is_written_is_read_back_exactly(value):
    line = strict_yaml.write(value)
    found = read(f"key: {line}")["key"]
    assert "\n" not in line
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("010", 10),
        ("~", None),
        ("", None),
        ("true", True),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("'1'", "1"),
        ("[1, a, null]", [1, "a", None]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = read(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_values_know_their_lines():
    document = strict_yaml.read("a: 1\nb:\n  c:\n    2\n", "my.yaml").content
    assert document["a"].line == 1
    assert document["b"].line == 2
    assert document["b"].content["c"].line == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"'a' occurs twice, first on line 1 \(my.yaml:3\)"),
        ("a: 1\nb: [", r"not YAML: .* \(my.yaml:2\)"),
        ("a: 1\n\tb: 2", r"not YAML: .* \(my.yaml:2\)"),
        ("a: &x 1\nb: *x", "anchors and aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "the tag .* is not allowed"),
        ("a: !!binary aGk=", "the tag .* is not allowed"),
        ("a: ${oc.env:HOME}", "looks like an interpolation"),
        ("a: ['x ${b}']", "looks like an interpolation"),
        ("${b}: 1", "not YAML|looks like an interpolation"),
        ("'${b}': 1", "looks like an interpolation"),
        ("a: .inf", "write a finite number"),
        ("a: .nan", "write a finite number"),
        ("a: 1e999", "write a finite number"),
        ("a: " + "9" * 400, "write a finite number"),
        ("a: " + "9" * 6000, "write a finite number"),
        ("? [1]\n: 2", "a key must be text"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: " + "[" * 1500, "nested too deeply"),
        ("a" * (2**20 + 1), "characters"),
    ],
)
def test_what_could_surprise_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_value_of_the_command_line_names_no_line():
    with pytest.raises(ConfigError) as caught:
        strict_yaml.scalar("[1", "command line")
    assert caught.value.where == "command line"
    assert strict_yaml.scalar("5", "command line") == 5
    assert math.isclose(strict_yaml.scalar("1e-3", "command line"), 0.001)
