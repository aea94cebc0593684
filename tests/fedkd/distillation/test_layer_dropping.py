"""Schedules (docs/strategies/fedd2s.md, equations 5 and 6). Integers, so all values are exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.distillation import layer_dropping
from fedkd.errors import ConfigError


def visited(drops, rounds, period, blocks=4, mode="fixed", size=None):
    size = len(drops) if size is None else size
    numbers = range(1, rounds + 1)
    return [layer_dropping.depth(mode, number, rounds, blocks, drops, size, period) for number in numbers]


@pytest.mark.parametrize(
    ("drops", "period", "expected"),
    [
        ((4, 3, 2), 5, [4] * 5 + [3] * 5 + [2] * 5 + [1] * 6),
        ((4, 2), 3, [4, 4, 4, 3, 3, 3, 1, 1, 1]),
        ((4, 3, 2, 1), 2, [4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0]),
        ((3, 2), 2, [4, 4, 2, 2, 1, 1, 1]),
    ],
)
def test_golden_schedules(drops, period, expected):
    assert visited(drops, len(expected), period) == expected


@st.composite
def schedules(draw):
    blocks = draw(st.integers(2, 9))
    drops = sorted(draw(st.sets(st.integers(1, blocks), min_size=1)), reverse=True)
    return blocks, drops, draw(st.integers(1, 7))


@given(schedules())
def test_depth_never_rises_starts_with_all_blocks_and_ends_below_the_last_of_the_set(schedule):
    blocks, drops, period = schedule
    depths = visited(drops, period * (len(drops) + 1), period, blocks)
    assert depths == sorted(depths, reverse=True)
    assert set(depths[:period]) == {blocks}
    assert depths[-1] == drops[-1] - 1


@given(schedules())
def test_reverse_visits_the_same_depths_in_rising_order(schedule):
    blocks, drops, period = schedule
    rounds = period * (len(drops) + 1)
    falling = visited(drops, rounds, period, blocks=blocks)
    assert visited(drops, rounds, period, blocks=blocks, mode="reverse") == falling[::-1]


def test_stop_leaves_where_the_last_drop_would_be_and_none_never_drops():
    assert visited((4, 3, 2), 16, 4, mode="stop") == [4] * 12 + [0] * 4
    assert visited((4, 3, 2), 16, 4, mode="none") == [4] * 16
    assert visited((), 5, 1) == [4] * 5


@given(st.integers(1, 9), st.integers(1, 9))
def test_students_of_other_depth_drop_nothing_at_first_and_all_in_the_end(size, own):
    depths = visited(layer_dropping.default_set(own + 1), size + 1, 1, blocks=own + 1, size=size)
    assert (depths[0], depths[-1]) == (own + 1, 1)
    assert depths == sorted(depths, reverse=True)


def test_without_a_period_every_depth_gets_as_many_rounds():
    assert layer_dropping.default_set(4) == (4, 3, 2)
    assert visited((4, 3, 2), 16, None) == [4] * 4 + [3] * 4 + [2] * 4 + [1] * 4
    assert visited((4, 3, 2), 17, None) == [4] * 5 + [3] * 5 + [2] * 5 + [1] * 2


@pytest.mark.parametrize("drops", [(3, 4), (4, 4), (5, 3), (2, 0)])
def test_a_set_that_does_not_fall_or_names_no_block_is_refused(drops):
    with pytest.raises(ConfigError, match="drop_set"):
        layer_dropping.check(drops, 4)


def test_a_student_of_one_block_has_no_tap():
    with pytest.raises(ConfigError, match="no tap"):
        layer_dropping.check((), 1)
