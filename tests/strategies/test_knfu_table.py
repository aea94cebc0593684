import math

import hypothesis.strategies as st
import pytest
import tiny
import torch
from hypothesis import given
from torch.testing import assert_close

from clients.knfu_table import KnFuTable as Client
from fedkd import seeds
from fedkd.maths import affinity
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies import knfu_table
from strategies.knfu_table import KnFuTable

STREAM = seeds.stream(0, "aggregate")
COUNTS = torch.tensor([[10, 10, 0], [5, 20, 5], [0, 5, 15]])
TABLES = torch.tensor(
    [[[2, 0, 0], [0, 2, 0], [9, 9, 9]], [[1, 0, 0], [0, 3, 0], [0, 0, 1]], [[5, 5, 5], [0, 1, 0], [0, 0, 2]]]
).float()


def strategy(**config):
    return KnFuTable(KnFuTable.Config(**config))


def replies(tables, counts, clients=None, round=1):
    clients = range(len(tables)) if clients is None else clients
    made = [Payload(class_logits=table, label_counts=its) for table, its in zip(tables, counts, strict=True)]
    return [tiny.reply(client, round=round, payload=payload) for client, payload in zip(clients, made, strict=True)]


def fuse(tables=TABLES, counts=COUNTS, **config):
    server = strategy(**config)
    return server.aggregate(server.init(tiny.problem(), STREAM), replies(tables, counts), STREAM)


def fused(client, label, **config):
    """F_k[y] that a client would be taught, or None."""
    teacher = fuse(**config)[0].teachers[client]
    return teacher.logits[label].softmax(0) if teacher.owners[label] else None


def near(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=2e-6)


SPEC = {"pseudo_count": 0, "divergence": "js", "include_self": True}


def test_distances_and_weights_of_the_spec():
    D = affinity.distance(affinity.reported(COUNTS), "js")
    near(D[[0, 0, 1], [1, 2, 2]], [0.107333, 0.454440, 0.207265])
    W = affinity.weights(D, 10)
    near(W, [[0.739374, 0.252769, 0.007857], [0.232925, 0.681328, 0.085747], [0.009350, 0.110739, 0.879911]])
    kl = affinity.weights(affinity.distance(affinity.reported(COUNTS, 1.0)), 10)
    near(kl[0], [0.933230, 0.066768, 0.000002])


def test_tables_of_the_spec():
    near(fused(0, 0, **SPEC), [0.733263, 0.133369, 0.133369])
    near(fused(0, 1, **SPEC), [0.091859, 0.816283, 0.091859])
    near(fused(0, 2, **SPEC), [0.208763, 0.208763, 0.582474])
    near(fused(2, 0, **SPEC), [0.592536, 0.203732, 0.203732])


def test_what_is_said_of_a_label_without_samples_changes_nothing():
    owns = COUNTS >= 1
    W = strategy(**SPEC)._weights(TABLES, COUNTS, owns)
    spoilt = TABLES.clone()
    spoilt[0, 2] = math.nan
    spoilt[2, 0] = math.inf
    assert torch.equal(knfu_table.fuse(spoilt, owns, W, 1.0), knfu_table.fuse(TABLES, owns, W, 1.0))
    by_tables = strategy(epd="class_table", include_self=True)
    assert torch.equal(by_tables._weights(spoilt, COUNTS, owns), by_tables._weights(TABLES, COUNTS, owns))


def test_a_single_owner_teaches_everybody_however_far():
    counts = torch.tensor([[9, 0, 0], [0, 9, 0], [0, 0, 9]])
    for client in range(3):
        for label in range(3):
            its = fused(client, label, counts=counts, include_self=True, pseudo_count=0, beta=1e4)
            assert_close(its, TABLES[label, label].softmax(0))


def test_without_self_a_single_owner_has_no_teacher_and_a_label_without_owners_neither():
    counts = torch.tensor([[9, 0, 0], [0, 9, 0], [0, 9, 0]])
    assert fused(0, 0, counts=counts) is None
    assert_close(fused(1, 0, counts=counts), TABLES[0, 0].softmax(0))
    assert_close(fused(1, 1, counts=counts), TABLES[2, 1].softmax(0))
    for client in range(3):
        assert fused(client, 2, counts=counts) is None
        assert fused(client, 2, counts=counts, include_self=True) is None


def draw(seed):
    generator = seeds.stream(seed, "tables").torch()
    counts = torch.randint(0, 4, (5, 3), generator=generator)
    return 2 * torch.randn(5, 3, 3, generator=generator), counts


config = st.fixed_dictionaries(
    {
        "epd": st.sampled_from(["reported", "class_table"]),
        "divergence": st.sampled_from(["kl", "js", "l1"]),
        "beta": st.sampled_from([0.0, 10.0, "inf"]),
        "include_self": st.booleans(),
        "top_m": st.sampled_from([None, 1, 2]),
        "min_owned": st.sampled_from([1, 2]),
        "temperature": st.sampled_from([1.0, 3.0]),
    }
)


@given(st.integers(0, 300), config)
def test_rows_are_probabilities_between_what_owners_say_or_there_are_none(seed, config):
    tables, counts = draw(seed)
    S = (tables / config["temperature"]).softmax(-1)
    owns = counts >= config["min_owned"]
    teachers = fuse(tables, counts, **config)[0].teachers
    for client, teacher in teachers.items():
        for label in range(3):
            owners = owns[:, label].clone()
            if not config["include_self"]:
                owners[client] = False
            if not teacher.owners[label]:
                assert config["epd"] == "class_table" or not owners.any()
                continue
            F = teacher.logits[label].exp()
            assert float(F.sum()) == pytest.approx(1, abs=1e-5)
            assert bool((S[owners, label].amin(0) - 1e-6 <= F).all())
            assert bool((S[owners, label].amax(0) + 1e-6 >= F).all())


@given(st.integers(0, 300), st.integers(0, 99))
def test_reordering_clients_moves_their_teachers_with_them(seed, other):
    tables, counts = draw(seed)
    order = torch.randperm(5, generator=seeds.stream(other, "order").torch())
    teachers, moved = fuse(tables, counts)[0].teachers, fuse(tables[order], counts[order])[0].teachers
    for place, client in enumerate(order.tolist()):
        assert_close(moved[place].logits, teachers[client].logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(moved[place].owners, teachers[client].owners)


def test_beta_zero_trusts_all_owners_alike():
    near(fused(0, 1, beta=0, include_self=True), TABLES[:, 1].softmax(-1).mean(0).tolist())
    near(fused(0, 2, beta=0, include_self=True), TABLES[1:, 2].softmax(-1).mean(0).tolist())


def test_clients_with_too_few_samples_of_a_label_have_no_say_on_it():
    assert_close(fused(2, 0, min_owned=6), TABLES[0, 0].softmax(0))


def test_tables_can_be_compared_instead_of_counts():
    counts = torch.full((3, 3), 5)
    tables = torch.stack([9 * torch.eye(3), 9 * torch.eye(3), 9 * torch.eye(3)[[1, 0, 2]]])
    assert_close(fused(0, 0, tables=tables, counts=counts, epd="class_table"), tables[1, 0].softmax(0))


def test_the_ledger_says_how_much_is_taught_and_how_well():
    _, found = fuse(counts=torch.tensor([[9, 0, 0], [0, 9, 0], [0, 9, 0]]))
    assert found["taught"] == 2 / 3
    assert found["teacher_accuracy"] == 1
    assert found["without_sender"] == pytest.approx((1 + 0 + 3) / 9)
    assert len(found["weights"]) == 3


def test_one_client_alone_goes_on_without_a_teacher():
    state, found = fuse(TABLES[:1], COUNTS[:1])
    assert not state.teachers[0].owners.any()
    assert found["taught"] == 0
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))


def test_what_crosses_has_the_size_of_the_spec_and_holds_no_weights():
    site = tiny.site(Client(), tiny.problem())
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(strategy(), site), engine, 2)
    classes = tiny.CLASSES
    for row in (p.row for p in played):
        assert row["bytes"]["up"] == {"class_logits": 3 * 4 * classes**2, "label_counts": 3 * 8 * classes}
    assert played[0].row["bytes"]["down"] == {}
    assert set(played[1].row["bytes"]["down"]) == {"class_logits", "label_counts"}


def test_a_teacher_waits_for_a_client_that_is_absent():
    server = strategy()
    state, _ = fuse()
    after, _ = server.aggregate(state, replies(TABLES[:2], COUNTS[:2], [0, 1], 2), STREAM)
    assert after.teachers[2] is state.teachers[2]
    planned = server.plan(after, Cohort((2, 7), 3))
    assert planned[2].class_logits is state.teachers[2].logits
    assert planned[7].kinds() == frozenset()
