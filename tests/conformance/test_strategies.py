"""What every server half must keep: states are values, transitions are pure, replies have no order."""

import dataclasses
import json
import math

import algorithms
import pytest
import tiny
from algorithms import Trail
from replays import judged

from fedkd import rounds
from fedkd.record import checkpoint
from fedkd.strategy import Cohort
from simulations import assemble


def test_three_rounds_run_and_all_their_numbers_are_finite(trail: Trail):
    for played in trail.rounds:
        assert not played.failures
        asked = {client for exchange in trail.round(played.state.round) for client in exchange.asked}
        assert played.row["clients"]["ok"] == len(asked) > 0
        assert json.dumps([played.row, played.clients], allow_nan=False)
        accuracy = played.row["accuracy"]
        assert all(0 <= accuracy[key] <= 1 for key in ("global",) if key in accuracy)
        assert all(0 <= value <= 1 for value in accuracy["clients"].values())
        for way in ("down", "up"):
            assert sum(played.row["bytes"][way].values()) == sum(r.get(f"bytes_{way}", 0) for r in played.clients)
    for way, kinds in (("down", trail.strategy.gives), ("up", trail.strategy.needs)):
        crossed = {kind for played in trail.rounds for kind in played.row["bytes"][way]}
        assert bool(crossed - {"numbers"}) == bool(kinds - {"numbers"})


def test_it_runs_where_each_client_keeps_its_own_statistics(named):
    assembly = assemble.assemble(algorithms.configure(named, "students.statistics=local", "rounds=2"))
    played = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))
    assert json.dumps([p.row for p in played], allow_nan=False)
    assert not [failure for p in played for failure in p.failures]


def test_the_halves_fit_and_agree_on_the_keys_that_both_have(algorithm):
    strategy, client = algorithms.halves(algorithm)
    assert strategy.needs <= client.sends
    mine, its = vars(strategy.config), vars(client.config)
    assert {key: mine[key] for key in mine.keys() & its} == {key: its[key] for key in mine.keys() & its}


def test_no_number_that_goes_down_is_a_key_of_the_configuration(trail: Trail):
    """Both halves have the same node: what travels are facts of a round."""
    keys = vars(trail.strategy.config) | vars(trail.assembly.site.client.config)
    told = {name for job in trail.jobs for name in job.payload.numbers or {}}
    assert not told & (keys.keys() - {"depth"})  # FedD2S: its key is of one schedule, the number is the round's


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
            assert reply.payload.kinds() == trail.strategy.expected_kinds(exchange.cohort) <= trail.strategy.needs


def test_each_round_has_as_many_exchanges_as_it_says(trail: Trail):
    for played in trail.rounds:
        number = played.state.round
        exchanges = [exchange.cohort.exchange for exchange in trail.round(number)]
        assert exchanges == list(range(trail.strategy.num_exchanges(number)))
        assert 0 < len(exchanges) <= trail.strategy.exchanges


def test_it_plans_for_its_cohort_and_equal_payloads_are_one_object(trail: Trail):
    for exchange in trail.exchanges:
        payloads = list(exchange.payloads.values())
        assert set(exchange.payloads) <= ({0} if trail.strategy.pools_data else set(exchange.cohort))
        assert len({id(payload) for payload in payloads}) == algorithms.distinct(list(map(tiny.canonical, payloads)))


def test_planning_changes_nothing_and_repeats_itself(trail: Trail):
    for exchange in trail.exchanges:
        before = tiny.canonical(exchange.before)
        again = trail.strategy.plan(exchange.before, exchange.cohort)
        tiny.assert_same(tiny.canonical(exchange.before), before)
        tiny.assert_same(tiny.canonical(again), tiny.canonical(exchange.payloads))


def test_aggregating_again_gives_the_same_bytes_and_changes_neither_the_state_nor_the_replies(trail: Trail):
    for exchange in reversed(trail.exchanges):
        given = tiny.canonical([exchange.before, exchange.replies])
        after, findings = trail.strategy.aggregate(exchange.before, exchange.replies, exchange.stream)
        tiny.assert_same(tiny.canonical([exchange.before, exchange.replies]), given)
        tiny.assert_same(tiny.canonical(after), tiny.canonical(exchange.after))
        assert dict(findings) == dict(exchange.findings)


def test_a_later_aggregation_does_not_reach_back_into_an_earlier_state(trail: Trail):
    """States share no memory that anybody writes: after all rounds each is what it was when its exchange ended."""
    for exchange in trail.exchanges:
        tiny.assert_same(tiny.canonical([exchange.before, exchange.after]), exchange.as_it_was)


def test_the_order_of_replies_changes_no_byte(trail: Trail):
    """Whoever answers first, the strategy is given the same replies in the same order; how it fuses them, see above."""
    for exchange in trail.exchanges:
        found = judged(trail, exchange, order=lambda replies: [*replies[1::2], *replies[::2]][::-1])
        assert not found.failures
        tiny.assert_same(tiny.canonical(found.replies), tiny.canonical(exchange.replies))


def test_it_works_with_one_reply(trail: Trail):
    """In any exchange of a round; what follows is planned for that client, or for a new cohort."""
    for exchange in trail.round(3):
        (reply,), cohort = exchange.replies[:1], exchange.cohort
        after, findings = trail.strategy.aggregate(exchange.before, [reply], exchange.stream)
        assert all(map(math.isfinite, algorithms.numbers(findings)))
        is_last = cohort.exchange == trail.strategy.num_exchanges(3) - 1
        following = Cohort((0, 1, 2, 3), 4) if is_last else Cohort((reply.client,), 3, cohort.exchange + 1)
        assert trail.strategy.plan(after, following) or not is_last


def test_a_state_survives_saving_and_loading(trail: Trail, tmp_path):
    """And the next round goes on from it as if nothing had been saved."""
    state = trail.states[2]
    checkpoint.commit(tmp_path, state, {}, "digest")
    loaded = checkpoint.load(tmp_path, trail.experiment, "digest", warn=pytest.fail)
    assert loaded is not None
    tiny.assert_same(tiny.canonical(loaded.state), tiny.canonical(state))
    played = rounds.run_round(trail.experiment, tiny.FakeEngine(trail.assembly.site), loaded.state)
    tiny.assert_same(algorithms.what_counts([played]), algorithms.what_counts(trail.rounds[2:]))


def test_a_first_state_can_be_saved_too(trail: Trail, tmp_path):
    checkpoint.commit(tmp_path, trail.states[0], {}, "digest")
    loaded = checkpoint.load(tmp_path, trail.experiment, "digest", warn=pytest.fail)
    assert loaded is not None
    tiny.assert_same(tiny.canonical(loaded.state), tiny.canonical(trail.states[0]))


def test_what_it_serves_loads_into_the_students_of_those_it_serves(trail: Trail):
    for client in (None, *range(5)):
        entries = trail.experiment.problem.initial(client).weights
        payload = trail.strategy.evaluation_payload(trail.states[-1].server, client)
        for name, value in (payload.weights or {}).items() if payload is not None else ():
            assert (value.shape, value.dtype) == (entries[name].shape, entries[name].dtype)


def test_it_serves_a_global_student_if_it_says_so(trail: Trail):
    """And shares more than a head."""
    payload, is_shared = (
        trail.strategy.evaluation_payload(trail.states[-1].server, None),
        "strategy.share=head" not in trail.words,
    )
    assert (payload is not None) == (trail.strategy.serves != "personal" and is_shared)
    measured = trail.rounds[-1].row["accuracy"]
    assert ("common" if payload is None else "global") in measured


def test_serving_changes_nothing(trail: Trail):
    state = trail.states[-1].server
    before = tiny.canonical(state)
    one, other = (tiny.canonical(trail.strategy.evaluation_payload(state, 1)) for _ in range(2))
    assert one == other
    tiny.assert_same(tiny.canonical(state), before)


def test_no_two_rounds_leave_the_same_state(trail: Trail):
    """Something was learned, or nothing above means anything. Where no student is global, clients may have learned."""
    states = [tiny.canonical(state.server) for state in trail.states]
    if trail.strategy.serves == "personal":
        clients = [{k: (own.kept, own.memory) for k, own in state.clients.items()} for state in trail.states]
        states = [(server, tiny.canonical(own)) for server, own in zip(states, clients, strict=True)]
    assert algorithms.distinct(states) == 4
