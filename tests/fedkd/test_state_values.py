"""States as tensors and plain JSON, and back."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedkd import state_values
from fedkd.engine import ClientState

DTYPES = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16)


@dataclass(frozen=True)
class Inner:
    weight: Tensor
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Outer:
    weights: Mapping[str, Tensor]
    by_client: Mapping[int, Inner]
    maybe: Inner | None
    lr: float


def through_json(value, template=None, hint=None):
    tensors, plain = state_values.flatten(value)
    return state_values.restore(template, json.loads(json.dumps(plain, allow_nan=False)), tensors, hint=hint)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert repr(a) == repr(b)  # tells -0.0 from 0.0


@st.composite
def st_tensor(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape)
    numbers = draw(st.lists(st.integers(0, 200), min_size=size, max_size=size))
    return torch.tensor(numbers).reshape(shape).to(draw(st.sampled_from(DTYPES)))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
states = st.recursive(
    scalars | st_tensor(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(states)
def test_any_state_comes_back_as_it_was(state):
    assert_same(state, through_json(state))


def test_types_come_from_the_template_and_where_it_has_nothing_from_the_annotations():
    empty = Outer({"a": torch.zeros(2)}, {}, None, 0.1)
    inner = Inner(torch.ones(3), ("x",))
    full = Outer({"a": torch.ones(2)}, {7: inner}, inner, float("inf"))

    found = through_json(full, template=empty)

    assert isinstance(found, Outer)
    assert isinstance(found.by_client[7], Inner)
    assert found.by_client[7].tags == ("x",)
    assert found.lr == math.inf


def test_a_tensor_held_twice_is_stored_once_and_stays_one():
    shared = torch.arange(3.0)
    tensors, _ = state_values.flatten({"a": shared, "b": shared})
    assert len(tensors) == 1

    found = through_json({"a": shared, "b": shared})
    assert found["a"] is found["b"]


def test_names_that_collide_do_not_overwrite_each_other():
    state = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    assert_same(state, through_json(state))


def test_client_states_keep_integer_keys():
    clients = {11: ClientState(kept={"w": torch.ones(2)}, memory={"seen": (1, 2)}, epoch=3, position=4, last_round=5)}
    found = through_json(clients, template={}, hint=Mapping[int, ClientState])
    assert list(found) == [11]
    assert found[11].memory == {"seen": (1, 2)}
    assert (found[11].epoch, found[11].position, found[11].last_round) == (3, 4, 5)


@pytest.mark.parametrize("value", [object(), {1, 2}, {(1, 2): 3}, {"a": b"bytes"}])
def test_what_a_state_may_not_hold_is_refused_when_it_is_saved(value):
    with pytest.raises(TypeError, match=r"state"):
        state_values.flatten(value)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"w": torch.zeros(3)}, {"w": torch.zeros(2)}),
        ({"w": torch.zeros(2).double()}, {"w": torch.zeros(2)}),
        ({"other": torch.zeros(2)}, {"w": torch.zeros(2)}),
    ],
)
def test_tensors_that_do_not_fit_the_code_are_refused(stored, expected):
    with pytest.raises(state_values.Misfit):
        through_json(Outer(stored, {}, None, 0.0), template=Outer(expected, {}, None, 0.0))


def test_a_dataclass_that_is_declared_nowhere_is_refused():
    with pytest.raises(state_values.Misfit, match="no dataclass"):
        through_json({"a": Inner(torch.ones(1), ())})


@dataclass(frozen=True)
class Told:
    seen: int
    told: Any = field(metadata=state_values.CONSTANT)


def test_what_a_run_is_told_is_not_stored_but_taken_from_the_template():
    tensors, plain = state_values.flatten({"a": Told(3, object())})
    assert plain == {"map": [["a", {"fields": {"seen": 3}}]]}
    found = state_values.restore({"a": Told(0, "the problem")}, plain, tensors)
    assert found == {"a": Told(3, "the problem")}
    with pytest.raises(state_values.Misfit, match="not stored"):
        state_values.restore({}, plain, tensors, hint=Mapping[str, Told])


@pytest.mark.parametrize(
    ("template", "plain"), [(1, "1"), (1, True), (1.0, "a"), (True, 1), ("a", 1), (1, []), (None, [])], ids=repr
)
def test_a_number_comes_back_as_a_number_and_text_as_text(template, plain):
    with pytest.raises(state_values.Misfit, match=r"expected|bare list"):
        state_values.restore({"x": template}, {"map": [["x", plain]]}, {})


@pytest.mark.parametrize(("template", "plain"), [(1, 2), (1, 2.5), (1.0, 2), (1.0, None), (None, "a"), (True, False)])
def test_a_number_may_turn_from_whole_to_broken_or_be_missing(template, plain):
    assert state_values.restore({"x": template}, {"map": [["x", plain]]}, {}) == {"x": plain}
