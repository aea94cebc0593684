"""What every server half must keep: states are values, transitions are pure, replies have no order."""

import dataclasses
import json
import math

import algorithms
import pytest
import tiny
from algorithms import Trail

from fedkd import checkpoint, rounds
from simulations import assemble


def test_three_rounds_run_and_all_their_numbers_are_finite(trail: Trail):
    for played in trail.rounds:
        assert not played.failures
        assert played.row["clients"]["ok"] == 4
        assert json.dumps([played.row, played.clients], allow_nan=False)
        accuracy = played.row["accuracy"]
        assert all(0 <= accuracy[key] <= 1 for key in ("global",) if key in accuracy)
        assert all(0 <= value <= 1 for value in accuracy["clients"].values())
        assert sum(played.row["bytes"]["down"].values()) == sum(row.get("bytes_down", 0) for row in played.clients) > 0
        assert sum(played.row["bytes"]["up"].values()) == sum(row.get("bytes_up", 0) for row in played.clients) > 0


def test_it_runs_where_each_client_keeps_its_own_statistics(algorithm):
    assembly = assemble.assemble(algorithms.configure(algorithm, "students.statistics=local", "rounds=2"))
    played = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))
    assert json.dumps([p.row for p in played], allow_nan=False)
    assert not [failure for p in played for failure in p.failures]


def test_the_halves_fit_and_share_no_hyper_parameter(algorithm):
    strategy, client = algorithms.halves(algorithm)
    assert strategy.needs <= client.sends
    mine, its = ({field.name for field in dataclasses.fields(half.config)} for half in (strategy, client))
    assert not mine & its


def test_it_names_its_source(algorithm):
    assert algorithms.halves(algorithm)[0].paper


def test_it_holds_its_configuration_and_nothing_else(trail: Trail, algorithm):
    """After three rounds as before the first."""
    assert set(vars(trail.strategy)) == {"config"}
    assert trail.strategy.config == algorithms.halves(algorithm)[0].config
    with pytest.raises(dataclasses.FrozenInstanceError):
        trail.strategy.config.anything = 1


def test_a_begin_is_the_same_value_each_time(trail: Trail):
    tiny.assert_same(tiny.canonical(rounds.begin(trail.experiment)), tiny.canonical(rounds.begin(trail.experiment)))


def test_what_it_sends_and_gets_is_what_it_declares(trail: Trail):
    for exchange in trail.exchanges:
        for payload in exchange.payloads.values():
            assert payload.kinds() <= trail.strategy.gives
        for reply in exchange.replies:
            assert reply.payload.kinds() == trail.strategy.needs


def test_all_that_it_gives_is_sent_within_three_rounds(trail: Trail):
    sent = {kind for exchange in trail.exchanges for payload in exchange.payloads.values() for kind in payload.kinds()}
    assert sent >= trail.strategy.gives - {"numbers"}


def test_it_plans_for_its_cohort_and_equal_payloads_are_one_object(trail: Trail):
    for exchange in trail.exchanges:
        payloads = list(exchange.payloads.values())
        assert set(exchange.payloads) <= set(exchange.cohort)
        assert len({id(payload) for payload in payloads}) == algorithms.distinct(list(map(tiny.canonical, payloads)))


def test_planning_changes_nothing_and_repeats_itself(trail: Trail):
    for exchange in trail.exchanges:
        before = tiny.canonical(exchange.before)
        again = trail.strategy.plan(exchange.before, exchange.cohort)
        tiny.assert_same(tiny.canonical(exchange.before), before)
        tiny.assert_same(tiny.canonical(again), tiny.canonical(exchange.payloads))


def test_aggregating_changes_neither_the_state_nor_the_replies(trail: Trail):
    for exchange in trail.exchanges:
        before = tiny.canonical([exchange.before, exchange.replies])
        trail.strategy.aggregate(exchange.before, exchange.replies, exchange.stream)
        tiny.assert_same(tiny.canonical([exchange.before, exchange.replies]), before)


def test_aggregating_the_same_again_gives_the_same_bytes(trail: Trail):
    for exchange in reversed(trail.exchanges):
        after, numbers = trail.strategy.aggregate(exchange.before, exchange.replies, exchange.stream)
        tiny.assert_same(tiny.canonical(after), tiny.canonical(exchange.after))
        assert dict(numbers) == dict(exchange.numbers)


def test_a_later_aggregation_does_not_reach_back_into_an_earlier_state(trail: Trail):
    """States share no memory that anybody writes: those of the trail are what a second play gives."""
    again = algorithms.follow(trail.assembly)
    tiny.assert_same(
        tiny.canonical([e.after for e in trail.exchanges]), tiny.canonical([e.after for e in again.exchanges])
    )
    tiny.assert_same(
        tiny.canonical([e.before for e in trail.exchanges]), tiny.canonical([e.before for e in again.exchanges])
    )


def test_the_order_of_replies_changes_no_byte(trail: Trail):
    engine = tiny.FakeEngine(trail.assembly.site, order=lambda replies: [*replies[1::2], *replies[::2]][::-1])
    played = algorithms.play(trail.experiment, engine)
    tiny.assert_same(algorithms.what_counts(played), algorithms.what_counts(trail.rounds))


def test_it_works_with_one_reply(trail: Trail):
    exchange = trail.exchanges[-1]
    after, numbers = trail.strategy.aggregate(exchange.before, exchange.replies[:1], exchange.stream)
    assert all(math.isfinite(value) for value in numbers.values())
    assert trail.strategy.plan(after, exchange.cohort)


def test_a_state_survives_saving_and_loading(trail: Trail, tmp_path):
    """And the next round goes on from it as if nothing had been saved."""
    state = trail.states[2]
    checkpoint.commit(tmp_path, state, {}, "digest")
    loaded = checkpoint.load(tmp_path, trail.experiment, "digest", warn=pytest.fail)
    assert loaded is not None
    tiny.assert_same(tiny.canonical(loaded.state), tiny.canonical(state))
    played = rounds.play(trail.experiment, tiny.FakeEngine(trail.assembly.site), loaded.state)
    tiny.assert_same(algorithms.what_counts([played]), algorithms.what_counts(trail.rounds[2:]))


def test_a_first_state_can_be_saved_too(trail: Trail, tmp_path):
    checkpoint.commit(tmp_path, trail.states[0], {}, "digest")
    loaded = checkpoint.load(tmp_path, trail.experiment, "digest", warn=pytest.fail)
    assert loaded is not None
    tiny.assert_same(tiny.canonical(loaded.state), tiny.canonical(trail.states[0]))


def test_what_it_serves_loads_into_the_problems_student(trail: Trail):
    entries = trail.experiment.problem.initial().weights
    for client in (None, *range(5)):
        payload = trail.strategy.served(trail.states[-1].server, client)
        if payload is not None:
            assert payload.kinds() == {"weights"}
            assert {name: entries[name].shape for name in payload.weights} == {
                name: value.shape for name, value in payload.weights.items()
            }


def test_serving_changes_nothing(trail: Trail):
    state = trail.states[-1].server
    before = tiny.canonical(state)
    one, other = (tiny.canonical(trail.strategy.served(state, 1)) for _ in range(2))
    assert one == other
    tiny.assert_same(tiny.canonical(state), before)


def test_no_two_rounds_leave_the_same_state(trail: Trail):
    """Something was learned, or nothing above means anything."""
    assert algorithms.distinct([tiny.canonical(state.server) for state in trail.states]) == 4
