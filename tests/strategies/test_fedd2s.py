"""FedD2S's server half: configuration, uploads, heads, tables; edge cases."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from taps import STREAM, TAPS, begun, one_block, ordered, reply, strategy, task
from torch.testing import assert_close

from fedkd.border.checks import Refused
from fedkd.distillation import heads
from fedkd.engine import Reply
from fedkd.errors import ConfigError
from fedkd.strategy import Cohort
from fedkd.training import forward
from strategies import fedd2s

# Configuration


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"drop_set": [2, 3]}, "drop_set"),
        ({"drop_set": [4]}, "drop_set"),
        ({"drop_set": [3, 0]}, "drop_set"),
        ({"drop_mode": "constant", "depth": 4}, "depth"),
        ({"tap_pool": 2}, "tap_pool"),
        ({"hetero": "adapter"}, "hetero"),
        ({"hetero": "adapter", "head_arch": "flat", "student": "global_head"}, "hetero"),
    ],
)
def test_what_cannot_work_says_so_at_the_start(changes, word):
    with pytest.raises(ConfigError, match=word):
        begun(strategy(**changes))


def test_a_student_of_one_block_is_refused():
    with pytest.raises(ConfigError, match="no tap"):
        begun(strategy(), task(make=one_block))


# Uploads


def test_an_honest_report_passes():
    half = strategy()
    state = begun(half)
    for depth, number in ((3, 1), (2, 3), (1, 5)):
        half.inspect(state, ordered(half, state, number=number), reply(depth=depth, number=number))


def numbered(**numbers) -> Reply:
    return replace(reply(), payload=replace(reply().payload, numbers=numbers))


BAD = {
    "another depth": (reply(depth=2), "stale"),
    "no depth": (numbered(), "stale"),
    "a number more": (
        replace(reply(), payload=replace(reply().payload, numbers={"depth": 3.0, "held_out": 0.5})),
        "stale",
    ),
    "fewer rows": (reply(rows=19), "shape"),
    "no rows": (reply(rows=0), "range"),
    "label out of range": (reply(labels=torch.full((20,), tiny.CLASSES, dtype=torch.uint8)), "range"),
    "wide labels": (reply(labels=torch.zeros(20, dtype=torch.int64)), "dtype"),
    "float labels": (reply(labels=torch.zeros(20)), "dtype"),
    "taps in half precision": (reply(taps=torch.zeros(20, *TAPS[3]).half()), "dtype"),
    "other taps": (reply(taps=torch.zeros(20, 5)), "shape"),
    "other classes": (reply(logits=torch.zeros(20, 4)), "shape"),
    "rows that differ": (reply(logits=torch.zeros(19, tiny.CLASSES)), "shape"),
    "an entry more": (reply(counts=torch.ones(20, dtype=torch.int64)), "names"),
    "nothing": (replace(reply(), payload=replace(reply().payload, samples={})), "names"),
}


@pytest.mark.parametrize("lie", BAD)
def test_a_report_that_is_not_what_was_asked_for_is_refused(lie):
    half = strategy()
    state = begun(half)
    bad, cause = BAD[lie]
    with pytest.raises(Refused) as refused:
        half.inspect(state, ordered(half, state), bad)
    assert refused.value.cause == cause


@pytest.mark.parametrize(
    ("labels", "counts"),
    [([0, 2], [10, 9]), ([2, 0], [10, 10]), ([0, 0], [10, 10]), ([0, 2], [20, 0]), ([0, 3], [10, 10])],
)
def test_class_means_must_be_of_all_samples_in_rising_order(labels, counts):
    half = strategy(knowledge="per_class")
    state = begun(half)
    sent = reply(rows=2, labels=torch.tensor(labels, dtype=torch.uint8), counts=torch.tensor(counts))
    with pytest.raises(Refused):
        half.inspect(state, ordered(half, state), sent)
    fine = reply(rows=2, labels=torch.tensor([0, 2], dtype=torch.uint8), counts=torch.tensor([15, 5]))
    half.inspect(state, ordered(half, state), fine)


def test_what_nobody_asked_for_is_refused():
    half = strategy(knowledge="smoothing")
    state = begun(half)
    with pytest.raises(Refused):
        half.inspect(state, ordered(half, state), reply())
    half.inspect(state, ordered(half, state), replace(reply(), payload=replace(reply().payload, samples={})))


def test_a_head_that_is_none_is_refused():
    half = strategy(head_up=True, drop_mode="constant")
    state = begun(half)
    good = heads.build(task(), 2, "tail", TAPS[2], STREAM).weights

    def tell(generator):
        sent = reply(depth=2)
        half.inspect(state, ordered(half, state), replace(sent, payload=replace(sent.payload, generator=generator)))

    tell(good)
    tell({})
    for bad in ({"head.weight": good["head.weight"]}, {**good, "head.bias": torch.zeros(9)}):
        with pytest.raises(Refused):
            tell(bad)


# Teaching


def test_the_server_changes_its_heads_and_tables_only():
    half = strategy()
    state, replies = begun(half), [reply(0), reply(1), reply(2)]
    before = tiny.canonical([state, replies])
    after, findings = half.aggregate(state, replies, STREAM)
    tiny.assert_same(tiny.canonical([state, replies]), before)
    assert {k: len(v) for k, v in after.tables.items()} == {0: 20, 1: 12, 2: 7}
    assert not any(entry.requires_grad for entry in after.heads["hidden"].values())
    assert findings["rows"] == 39
    assert {"head_ce", "head_kl", "teacher_accuracy", "filter_gain", "harmed", "own_max", "teacher_max"} <= set(
        findings
    )


def test_tables_are_what_the_taught_head_says_in_eval_mode():
    half = strategy()
    after, _ = half.aggregate(begun(half), [reply(0), reply(1)], STREAM)
    head = heads.build(task(), 3, "tail", TAPS[3], STREAM).load(after.heads["hidden"])
    for client in (0, 1):
        assert_close(after.tables[client], forward.logits(head, reply(client).payload.samples["taps"]))


def test_a_head_goes_on_where_it_stopped_in_the_last_round():
    half = strategy()
    one, _ = half.aggregate(begun(half), [reply(0)], STREAM)
    _, first = half.aggregate(begun(half), [reply(0)], STREAM)
    later = one
    for i in range(20):
        later, last = half.aggregate(later, [reply(0)], STREAM.child(i))
    assert last["head_ce"] < first["head_ce"]


def test_permuting_a_clients_rows_permutes_its_table():
    """One full batch a pass: the order within it only moves the last bits."""
    half = strategy(server_batch=100, server_epochs=1)
    order = torch.randperm(20, generator=STREAM.torch())
    sent = reply(0)
    moved = replace(sent, payload=replace(sent.payload, samples={n: t[order] for n, t in sent.payload.samples.items()}))
    one, _ = half.aggregate(begun(half), [sent, reply(1)], STREAM)
    other, _ = half.aggregate(begun(half), [moved, reply(1)], STREAM)
    assert_close(other.tables[0], one.tables[0][order])


def test_identical_clients_get_identical_tables():
    half = strategy()
    twin = replace(reply(0), client=1)
    after, _ = half.aggregate(begun(half), [reply(0), twin], STREAM)
    assert torch.equal(after.tables[0], after.tables[1])


def test_one_client_alone_teaches_itself_and_is_counted():
    half = strategy()
    after, findings = half.aggregate(begun(half), [reply(0)], STREAM)
    assert findings["alone"] == 1
    assert torch.isfinite(after.tables[0]).all()


def test_a_head_that_diverges_is_put_back_and_tells_nobody_anything():
    half, wild = strategy(), strategy(server_lr=1e30)
    state, _ = half.aggregate(begun(half), [reply(0), reply(1)], STREAM)
    after, findings = wild.aggregate(state, [reply(0, seed=5), reply(1, seed=5)], STREAM)
    assert findings["restored"] == 1
    tiny.assert_same(tiny.canonical([after.heads, after.tables]), tiny.canonical([state.heads, state.tables]))
    assert all(math.isfinite(v) for v in findings.values())
    fresh, _ = wild.aggregate(begun(wild), [reply(0)], STREAM)
    assert (fresh.heads, fresh.tables) == ({}, {})


def test_class_means_weigh_by_their_counts():
    def means(client, counts):
        labels = torch.arange(len(counts), dtype=torch.uint8)
        return reply(client, rows=len(counts), labels=labels, counts=torch.tensor(counts))

    assert_close(fedd2s._dataset([means(0, [15, 5]), means(2, [7])]).weight, torch.tensor([15.0, 5, 7]) * 3 / 27)
    assert_close(fedd2s._dataset([reply(0), reply(2)]).weight, torch.ones(27))


def test_the_head_begins_as_the_mean_of_those_that_clients_sent():
    half = strategy(head_up=True, drop_mode="constant", server_lr=1e-30)

    def sent(client, value):
        own = reply(client, depth=2)
        head = {"head.weight": torch.full((3, tiny.LATENT), value), "head.bias": torch.full((3,), value)}
        return replace(own, payload=replace(own.payload, generator=head))

    after, _ = half.aggregate(begun(half), [sent(0, 1.0), sent(1, 9.0)], STREAM)
    assert_close(after.heads["hidden"]["head.bias"], torch.full((3,), (20 * 1 + 12 * 9) / 32))


# What clients are told


def test_equal_payloads_are_one_object_and_a_table_goes_to_its_owner():
    half = strategy()
    state = begun(half)
    plan = half.plan(state, Cohort((0, 1, 2), 1))
    assert plan[0] is plan[1] is plan[2]
    state, _ = half.aggregate(state, [reply(0), reply(1)], STREAM)
    plan = half.plan(state, Cohort((0, 1), 2))
    assert plan[0].samples["logits"] is state.tables[0]
    assert plan[1].samples["logits"] is state.tables[1]
