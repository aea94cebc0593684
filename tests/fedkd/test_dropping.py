"""Schedules (docs/strategies/fedd2s.md, equations 5 and 6). Integers, so all values are exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import dropping
from fedkd.dropping import Plateau
from fedkd.errors import ConfigError


def visited(drops, rounds, period, start=0, per_event=1, blocks=4, mode="fixed"):
    counts = [dropping.dropped(t, len(drops), period, start, per_event) for t in range(rounds)]
    return [dropping.depth(mode, count, blocks, drops) for count in counts]


@pytest.mark.parametrize(
    ("drops", "period", "start", "per_event", "expected"),
    [
        ((4, 3, 2), 5, 0, 1, [4] * 5 + [3] * 5 + [2] * 5 + [1] * 6),
        ((4, 3, 2), 4, 3, 1, [4] * 7 + [3] * 4 + [2] * 4 + [1] * 4),
        ((4, 2), 3, 0, 1, [4, 4, 4, 3, 3, 3, 1, 1, 1]),
        ((4, 3, 2, 1), 2, 0, 1, [4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0]),
        ((4, 3, 2), 2, 0, 2, [4, 4, 2, 2, 1, 1, 1]),
    ],
)
def test_golden_schedules(drops, period, start, per_event, expected):
    assert visited(drops, len(expected), period, start, per_event) == expected


def test_counting_is_exact_where_floats_are_not():
    """0.29 * 100 is 28.999...: a rate is blocks an event over rounds between events, never a float."""
    assert dropping.dropped(100, size=99, period=100, per_event=29) == 29


@st.composite
def schedules(draw):
    blocks = draw(st.integers(2, 9))
    drops = sorted(draw(st.sets(st.integers(1, blocks), min_size=1)), reverse=True)
    return blocks, drops, draw(st.integers(1, 7)), draw(st.integers(0, 9)), draw(st.integers(1, 3))


@given(schedules())
def test_depth_never_rises_starts_with_all_blocks_and_ends_below_the_last_of_the_set(schedule):
    blocks, drops, period, start, per_event = schedule
    depths = visited(drops, start + period * (len(drops) + 1), period, start, per_event, blocks)
    assert depths == sorted(depths, reverse=True)
    assert set(depths[: start + period]) == {blocks}
    assert depths[-1] == drops[-1] - 1


@given(schedules())
def test_reverse_visits_the_same_depths_in_rising_order(schedule):
    blocks, drops, period, _, _ = schedule
    rounds = period * (len(drops) + 1)
    falling = visited(drops, rounds, period, blocks=blocks)
    assert visited(drops, rounds, period, blocks=blocks, mode="reverse") == falling[::-1]


def test_stop_leaves_where_the_last_drop_would_be_and_none_never_drops():
    assert visited((4, 3, 2), 16, 4, mode="stop") == [4] * 12 + [0] * 4
    assert visited((4, 3, 2), 16, 4, mode="none") == [4] * 16
    assert visited((), 5, 1) == [4] * 5


def test_constant_is_one_depth_from_the_first_round_on():
    assert [dropping.depth("constant", n, 4, (4, 3, 2)) for n in range(4)] == [3] * 4
    assert [dropping.depth("constant", n, 4, (4, 3, 2), 0) for n in range(4)] == [0] * 4


def test_default_period_gives_every_depth_as_many_rounds():
    assert dropping.default_set(4) == (4, 3, 2)
    assert dropping.default_period(16, 3) == 4
    assert dropping.default_period(17, 3) == 5
    assert visited((4, 3, 2), 16, dropping.default_period(16, 3)) == [4] * 4 + [3] * 4 + [2] * 4 + [1] * 4


@given(st.integers(1, 9), st.integers(1, 9))
def test_students_of_other_depth_drop_nothing_at_first_and_all_in_the_end(size, own):
    counts = [dropping.scaled(n, size, own) for n in range(size + 1)]
    assert (counts[0], counts[-1]) == (0, own)
    assert counts == sorted(counts)


@pytest.mark.parametrize("drops", [(3, 4), (4, 4), (5, 3), (2, 0)])
def test_a_set_that_does_not_fall_or_names_no_block_is_refused(drops):
    with pytest.raises(ConfigError, match="drop_set"):
        dropping.check(drops, 4)


def test_a_student_of_one_block_has_no_tap():
    with pytest.raises(ConfigError, match="no tap"):
        dropping.check((), 1)


def test_a_plateau_drops_after_patience_rounds_without_progress_and_starts_afresh():
    now, seen = Plateau(), []
    for accuracy in (0.5, 0.5005, 0.502, 0.4, 0.5, 0.1, 0.0):
        now = dropping.advance(now, accuracy, size=3, patience=3, delta=0.001)
        seen.append((now.dropped, now.waited))
    # 0.502 is progress, the next three are not; after the drop the first value counts as the best, whatever it is
    assert seen == [(0, 0), (0, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 0)]


@given(st.lists(st.floats(0, 1), max_size=40))
def test_a_plateau_only_ever_drops_and_not_beyond_its_set(accuracies):
    now, counts = Plateau(), [0]
    for accuracy in accuracies:
        now = dropping.advance(now, accuracy, size=2, patience=1, delta=0.0)
        counts.append(now.dropped)
    assert counts == sorted(counts)
    assert counts[-1] <= 2
