"""FedD2S in whole runs: schedules, bytes, poison, resume, readings; invariants."""

import math
from dataclasses import replace

import algorithms
import pytest
import tiny
import torch
from taps import SIZES, STREAM, begun, deep, ordered, reply, run, strategy, task, wide

from clients.fedd2s import FedD2S as Half
from fedkd import rounds, seeds
from fedkd.distillation import heads
from fedkd.record import checkpoint
from fedkd.strategy import Cohort


def client(changes) -> Half:
    """The client half of a strategy with these changes: keys of both halves have one value."""
    return Half(Half.Config(**{key: value for key, value in changes.items() if hasattr(Half.Config, key)}))


# Schedule in a run


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [3, 3, 2, 2, 1, 1]),
        ({"drop_mode": "none"}, [3] * 6),
        ({"drop_set": []}, [3] * 6),
        ({"drop_mode": "constant"}, [2] * 6),
        ({"drop_mode": "constant", "depth": 1}, [1] * 6),
        ({"drop_mode": "reverse"}, [1, 1, 2, 2, 3, 3]),
        ({"drop_mode": "stop"}, [3, 3, 3, 3, 0, 0]),
        ({"drop_set": [3, 1], "drop_period": 2}, [3, 3, 2, 2, 0, 0]),
    ],
)
def test_the_depth_is_that_of_the_schedule_for_every_client(changes, expected):
    half = strategy(**changes)
    state = begun(half)
    for number, depth in enumerate(expected, start=1):
        plan = half.plan(state, Cohort((0, 2), number))
        assert {(p.numbers or {}).get("depth", 0) for p in plan.values()} == {depth}


def test_a_run_visits_the_depths_and_sends_less_than_nothing_nowhere():
    played, engine = run(strategy(), 6)
    assert [p.row["server"]["depth"] for p in played] == [3, 3, 2, 2, 1, 1]
    assert not [failure for p in played for failure in p.failures]
    n = sum(SIZES)
    for p, width in zip(played, (4, 4, 4, 4, 8, 8), strict=True):
        assert p.row["bytes"]["up"]["samples"] == n * (4 * width + 4 * tiny.CLASSES + 1)
    assert [p.row["bytes"]["down"].get("samples", 0) for p in played] == [0, *[4 * tiny.CLASSES * n] * 5]
    kept = played[-1].state.clients[0].memory["heads"]
    assert set(kept) == {"hidden", "conv"}
    assert set(played[-1].state.server.heads) == {"hidden", "conv"}
    assert not [job for job in engine.jobs if job.payload.weights]


def test_nothing_travels_and_no_head_is_taught_once_everything_is_dropped():
    played, _ = run(strategy(drop_set=[3, 1], drop_period=1), 4)
    assert [p.row["server"]["depth"] for p in played] == [3, 2, 0, 0]
    for p in played[2:]:
        assert sum(p.row["bytes"]["up"].values()) == sum(p.row["bytes"]["down"].values()) == 0
        assert not p.failures
    tiny.assert_same(tiny.canonical(played[1].state.server.heads), tiny.canonical(played[3].state.server.heads))


def test_clients_that_were_away_jump_to_the_depth_of_the_round():
    half = strategy()
    state, _ = half.aggregate(begun(half), [reply(0), reply(1)], STREAM)
    plan = half.plan(state, Cohort((0, 2), 3))
    assert plan[0].samples["logits"].shape == (20, tiny.CLASSES)
    assert plan[2].samples is None
    assert {p.numbers["depth"] for p in plan.values()} == {2}


def test_one_poisoned_report_changes_nothing_but_the_count_of_refusals():
    half, problem = strategy(), task()
    site = tiny.site(Half(), problem)
    experiment = tiny.experiment(half, site)
    first = tiny.play(experiment, tiny.FakeEngine(site), 1)[0].state

    def poison(job, result):
        if job.task != "train" or job.client != 1:
            return result
        samples = dict(result.payload.samples)
        samples["logits"] = samples["logits"].clone()
        samples["logits"][0, 0] = math.nan
        return replace(result, payload=replace(result.payload, samples=samples))

    honest = rounds.run_round(experiment, tiny.FakeEngine(site), first)
    spoiled = rounds.run_round(experiment, tiny.FakeEngine(site, spoil=poison), first)
    assert (honest.row["clients"]["rejected"], spoiled.row["clients"]["rejected"]) == (0, 1)
    # what a round without client 1 gives
    state = first.server
    jobs = {c: ordered(half, state, c, 2) for c in (0, 2)}
    replies = [tiny.fit(Half(), replace(jobs[c], state=first.clients[c]), site) for c in (0, 2)]
    stream = seeds.stream(problem.seed, "aggregate", round=2).child(0)
    expected, _ = half.aggregate(state, replies, stream)
    tiny.assert_same(tiny.canonical(spoiled.state.server), tiny.canonical(expected))
    assert torch.equal(spoiled.state.server.tables[1], state.tables[1])


# Other readings, in whole runs


@pytest.mark.parametrize(
    "changes",
    [
        {"knowledge": "per_class"},
        {"knowledge": "smoothing"},
        {"student": "global_head"},
        {"student": "global_head", "head_up": True},
        {"exchange": "two_step"},
        {"exchange": "two_step", "student": "global_head"},
        {"exchange": "two_step", "drop_mode": "stop"},
        {"head_up": True},
        {"head_arch": "flat", "tap_pool": 1},
        {"drop_mode": "reverse", "knowledge": "per_class"},
    ],
)
def test_a_run_of_each_reading_has_no_failures(changes):
    played, _ = run(strategy(**changes), 6, clients_per_round=2, client=client(changes))
    assert not [failure for p in played for failure in p.failures]
    assert all(math.isfinite(v) for p in played for v in p.row["server"].values())


def test_in_two_steps_the_teacher_is_of_this_round():
    half = strategy(exchange="two_step")
    _, engine = run(half, 1, client=client({"exchange": "two_step"}))
    first, second = ([j for j in engine.jobs if j.task == "train" and j.exchange == e] for e in (0, 1))
    assert [j.payload.samples for j in first] == [None] * 3
    assert [len(j.payload.samples["logits"]) for j in second] == list(SIZES)


def test_in_two_steps_what_training_does_to_a_student_is_measured_after_it():
    found = algorithms.trail(("strategy=fedd2s",), "strategy.exchange=two_step")
    for number in (1, 2, 3):
        first, second = found.round(number)
        assert [reply.probe for reply in first.replies] == [None] * 4
        assert all(len(reply.probe) == 8 for reply in second.replies)


def test_students_that_differ_share_no_head_even_at_taps_of_one_shape():
    problem = task(mixture={"deep": deep, "wide": wide}, assigned=("deep", "wide", "deep"))
    half = strategy(drop_period=1)
    played, engine = run(half, 6, problem=problem)
    assert not [failure for p in played for failure in p.failures]
    depths = [
        tuple(int(j.payload.numbers["depth"]) for j in engine.jobs if (j.task, j.round) == ("train", n + 1))
        for n in range(6)
    ]
    assert depths == [(3, 4, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    state = played[-1].state.server
    assert {"deep:conv", "deep:hidden", "wide:hidden"} <= set(state.heads)
    assert state.shapes["deep"]["hidden"] == state.shapes["wide"]["hidden"]
    assert {p.row["server"]["alone"] for p in played} == {1}


@pytest.mark.parametrize("changes", [{}, {"exchange": "two_step", "head_up": True}])
def test_a_run_resumed_at_any_round_gives_the_same_bytes(changes, tmp_path):
    problem = task()
    site = tiny.site(client(changes), problem)
    experiment = tiny.experiment(strategy(**changes), site)
    played = tiny.play(experiment, tiny.FakeEngine(site), 6)
    for at in range(5):
        folder = tmp_path / str(at)
        checkpoint.commit(folder, played[at].state, {}, "digest")
        loaded = checkpoint.load(folder, experiment, "digest", warn=pytest.fail)
        again = rounds.run_round(experiment, tiny.FakeEngine(site), loaded.state)
        assert tiny.as_bytes(again) == tiny.as_bytes(played[at + 1])
        tiny.assert_same(tiny.canonical(again.state), tiny.canonical(played[at + 1].state))


def test_it_serves_what_clients_keep_and_no_global_student():
    half = strategy()
    assert half.evaluation_payload(begun(half), None) is None
    assert half.evaluation_payload(begun(half), 0) is None


# One head behind adapters


def mixed(changes, **config):
    problem = task(mixture={"deep": deep, "wide": wide}, assigned=("deep", "wide", "deep"))
    return run(strategy(**changes), 6, client=client(changes), problem=problem, **config)


ADAPTER = {"hetero": "adapter", "head_arch": "flat", "drop_period": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"knowledge": "per_class"},
        {"exchange": "two_step"},
        {"head_up": True},
        {"tap_pool": 1},
    ],
)
def test_students_that_differ_share_one_head_behind_adapters(changes):
    played, _ = mixed({**ADAPTER, **changes}, clients_per_round=2)
    assert not [failure for p in played for failure in p.failures]
    state = played[-1].state.server
    assert set(state.heads) == {"adapter"}
    assert state.heads["adapter"]["head.weight"].shape == (tiny.CLASSES, heads.ADAPTED)
    assert {p.row["server"]["alone"] for p in played} == {0}


def test_behind_adapters_all_taps_are_of_one_width():
    """4 d* + 4 C + 1 bytes a sample, whatever the tap."""
    played, _ = mixed(ADAPTER)
    size = 4 * heads.ADAPTED + 4 * tiny.CLASSES + 1
    assert {p.row["bytes"]["up"]["samples"] for p in played} == {sum(SIZES) * size}
