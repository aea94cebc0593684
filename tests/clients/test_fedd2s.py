"""FedD2S's client half: golden numbers G1 and G3 and the invariants of fedd2s.md 9, by number."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from clients.fedd2s import FedD2S, reported
from clients.supervised import Supervised
from fedkd import heads, losses, orders, seeds
from fedkd.client import Batch
from fedkd.engine import ClientState, Job
from fedkd.orders import Order
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.student import Student
from fedkd.training import Site

STREAM = seeds.stream(0, "test")
SIZE = 20  # of client 0's data
TRAIN = replace(tiny.TRAIN, steps=None, epochs=2, momentum=0.9, weight_decay=0.01)


def deep() -> Student:
    """Three blocks without normalisation: conv, hidden, head."""
    conv = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU())
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(8, tiny.LATENT), nn.ReLU())
    return Student(OrderedDict(conv=conv, hidden=hidden, head=nn.Linear(tiny.LATENT, tiny.CLASSES)))


def fedd2s(**changes) -> FedD2S:
    return FedD2S(FedD2S.Config(**changes))


def task(**changes) -> Problem:
    return tiny.problem(**{"make": deep, "train": TRAIN, **changes})


def site(client=None, problem=None) -> Site:
    return tiny.site(client or fedd2s(), problem or task())


def table(rows=SIZE, seed=1, scale=3.0):
    return scale * torch.randn(rows, tiny.CLASSES, generator=seeds.stream(seed, "table").torch())


def job(depth: int, *, samples=None, state=None, generator=None, number=1, exchange=0, **order) -> Job:
    told = Order(depth=depth, temperature=3.0, **order)
    samples = {"logits": samples} if isinstance(samples, torch.Tensor) else samples
    return Job(
        task="train",
        client=0,
        round=number,
        exchange=exchange,
        payload=Payload(samples=samples, numbers=told.numbers(), generator=generator),
        state=state or ClientState(),
    )


def first_batch(at: Site, told: Job, size=8) -> Batch:
    """The first samples in stored order with what is known of them."""
    index = at.train_index[0][:size]
    x, y = at.train.take(index)
    known = at.client.consult(at, told, x, y, torch.arange(size))
    return Batch(x, y, 0, size, known=known)


def with_head(at: Site, told: Job) -> Job:
    """The job after a round without learning: its local head is there, as new."""
    student = at.problem.initial()
    tap = heads.tap(student, told.payload.numbers["depth"].__int__())
    shape = heads.shapes(at.problem)[tap]
    live = heads.build(at.problem, int(told.payload.numbers["depth"]), "tail", shape, STREAM).weights
    live = {name: entry.requires_grad_(not heads.is_statistic(name)) for name, entry in live.items()}
    return replace(told, state=replace(told.state, memory={"heads": {tap: live}}))


def gradients(client, at, told, student, batch):
    loss = sum(value for _, value in client.terms(student, batch, told))
    named = dict(student.learnable)
    for entries in told.state.memory.get("heads", {}).values():
        named |= {f"local.{n}": e for n, e in entries.items() if e.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), dict(zip(named, found, strict=True))


# 1. Golden numbers


V = torch.tensor([[2.0, 0, -1], [0.5, 1.5, 0]], dtype=torch.float64)
S = torch.tensor([[1.0, 1, 0], [0, 3, -1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1, 0.36280184516288), (2, 0.51879526366526), (3, 0.55032544642586)]
)
def test_g1_divergence(temperature, expected):
    assert losses.softened_kl(S, V, temperature).item() == pytest.approx(expected, abs=1e-13)


def test_g1_by_sample_by_direction_and_with_cross_entropy():
    each = [losses.softened_kl(S[i : i + 1], V[i : i + 1], 3.0).item() for i in range(2)]
    assert each == pytest.approx([0.48474946823729, 0.61590142461444], abs=1e-13)
    assert losses.softened_kl(V, S, 1.0).item() == pytest.approx(0.39715606313682, abs=1e-13)
    ce = losses.cross_entropy(V, torch.tensor([0, 1]))
    assert ce.item() == pytest.approx(0.31710740183211, abs=1e-13)
    assert (ce + losses.softened_kl(S, V, 3.0)).item() == pytest.approx(0.86743284825798, abs=1e-13)


def two_blocks() -> Student:
    b1, head = nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        b1.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.weight.copy_(torch.eye(2))
    return Student(OrderedDict(b1=b1, head=head)).double()


B2 = [[-0.11920292202212, 0.11920292202212], [0.11920292202212, -0.11920292202212]]


@pytest.mark.parametrize(
    ("depth", "loss", "b1", "b2", "g"),
    [
        (2, 1.21842281160657, 0.58783289764160, [[0.58783289764160, -0.58783289764160]], None),
        (1, 2.36567617303470, 0.97879265081207, B2, -1.09799557283418),
        (0, 0.12692801104297, -0.11920292202212, B2, None),
    ],
)
def test_g3_gradient_routing(depth, loss, b1, b2, g):
    student = two_blocks()
    local = torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64, requires_grad=True)
    state = ClientState(memory={"heads": {"b1": {"head.weight": local}}})
    told = job(depth, state=state)
    told = replace(told, payload=Payload(numbers={**(told.payload.numbers or {}), "temperature": 2.0}))
    known = {"teacher": torch.tensor([[0.0, 1]], dtype=torch.float64), "taught": torch.ones(1, dtype=torch.bool)}
    batch = Batch(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]), 0, 1, known=known)
    found, grads = gradients(fedd2s(), None, told, student, batch)
    assert found.item() == pytest.approx(loss, abs=1e-13)
    assert grads["b1.weight"].flatten().tolist() == pytest.approx([b1, -b1], abs=1e-13)
    expected = b2 if len(b2) == 2 else [b2[0], [-value for value in b2[0]]]
    assert_close(grads["head.weight"], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)
    if g is None:
        assert grads["local.head.weight"] is None
    else:
        assert_close(
            grads["local.head.weight"], torch.tensor([[g, -g], [-g, g]], dtype=torch.float64), rtol=0, atol=1e-13
        )


# 3. Dropped blocks feel nothing of the federation


@pytest.mark.parametrize("student", orders.STUDENTS)
@pytest.mark.parametrize("depth", [1, 2])
def test_dropped_blocks_have_the_gradient_of_local_training_bit_for_bit(student, depth):
    at = site()
    told = with_head(at, job(depth, samples=table(), student=orders.STUDENTS.index(student)))
    (entries,) = told.state.memory["heads"].values()
    told = replace(told, payload=replace_generator(told.payload, entries))
    module = at.problem.initial()
    _, grads = gradients(fedd2s(), at, told, module, first_batch(at, told))
    x, y = first_batch(at, told).x, first_batch(at, told).y
    alone = torch.autograd.grad(losses.cross_entropy(module(x), y), list(module.learnable.values()))
    dropped = tuple(f"{name}." for name in heads.names(module)[depth:])
    for name, expected in zip(module.learnable, alone, strict=True):
        assert torch.equal(grads[name], expected) == name.startswith(dropped), name


def replace_generator(payload: Payload, entries) -> Payload:
    return Payload(
        samples=payload.samples,
        numbers=payload.numbers,
        generator={name: entry.detach() for name, entry in entries.items()},
    )


def test_frozen_blocks_stay_as_they_are():
    client = fedd2s(dropped_blocks="freeze")
    reply = tiny.fit(client, job(2, samples=table()), site(client))
    before = task().initial().weights
    same = {name for name, entry in reply.state.kept.items() if torch.equal(entry, before[name])}
    assert same == {"head.weight", "head.bias"}


def test_nothing_is_frozen_where_nothing_takes_part():
    client = fedd2s(dropped_blocks="freeze")
    frozen, free = (tiny.fit(c, job(0), site(c)) for c in (client, fedd2s()))
    tiny.assert_same_weights(frozen.state.kept, free.state.kept)


def test_a_base_shut_off_from_cross_entropy_learns_from_the_federation_only():
    client = fedd2s(ce_through=False, mu=0.0)
    at = site(client)
    told = with_head(at, job(2, samples=table()))
    module = at.problem.initial()
    _, grads = gradients(client, at, told, module, first_batch(at, told))
    _, only = gradients(fedd2s(mu=0.0), at, told, module, first_batch(at, told))
    u = torch.autograd.grad(
        losses.cross_entropy(module(first_batch(at, told).x), first_batch(at, told).y),
        module.learnable["conv.0.weight"],
    )[0]
    assert_close(grads["conv.0.weight"] + u, only["conv.0.weight"])
    assert torch.equal(grads["head.weight"], only["head.weight"])


# 4. Without knowledge it is local training


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_no_weights_give_the_bytes_of_local_training(depth):
    quiet = fedd2s(lambda_c=0.0, mu=0.0)
    state, alone = ClientState(), ClientState()
    for number in (1, 2):
        state = tiny.fit(quiet, job(depth, samples=table(), state=state, number=number), site(quiet)).state
        told = Job(task="train", client=0, round=number, payload=Payload(), state=alone)
        alone = tiny.fit(Supervised(), told, site(Supervised())).state
    tiny.assert_same_weights(state.kept, alone.kept)
    assert (state.epoch, state.position) == (alone.epoch, alone.position)


def test_a_client_that_left_goes_on_as_local_training_would():
    state = tiny.fit(fedd2s(), job(2, samples=table()), site()).state
    left = tiny.fit(fedd2s(), job(0, state=state, number=2), site())
    told = Job(task="train", client=0, round=2, payload=Payload(), state=state)
    tiny.assert_same_weights(left.state.kept, tiny.fit(Supervised(), told, site(Supervised())).state.kept)
    assert not sum(left.payload.num_bytes().values())


def test_runs_that_differ_in_depth_draw_the_same_batches(monkeypatch):
    """Making a head must not move the stream of batches (trap 9)."""
    drawn = []
    draw = Site.draw
    monkeypatch.setattr(Site, "draw", lambda self, told: drawn.append(draw(self, told)) or drawn[-1])
    for depth in (3, 1):
        tiny.fit(fedd2s(), job(depth), site())
    assert torch.equal(drawn[0].position, drawn[1].position)


# 5. The divergence


@given(st.integers(0, 10_000), st.floats(-20, 20), st.floats(1, 8))
def test_the_divergence_is_positive_blind_to_constants_and_has_its_gradient(seed, shift, temperature):
    draw = seeds.stream(seed, "kl").torch()
    v, s = (torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    v.requires_grad_()
    value = losses.softened_kl(s, v, temperature)
    assert value.item() > 0
    assert losses.softened_kl(s + shift, v, temperature).item() == pytest.approx(value.item(), abs=1e-9)
    assert losses.softened_kl(v.detach() + shift, v, temperature).item() == pytest.approx(0, abs=1e-9)
    (grad,) = torch.autograd.grad(value, v)
    expected = temperature / 6 * ((v / temperature).softmax(1) - (s / temperature).softmax(1))
    assert_close(grad, expected.detach(), rtol=0, atol=1e-12)


# 6. What changes, and what travels


def test_a_local_head_is_made_at_each_tap_visited_and_rests_when_the_depth_moves_on():
    state, at = ClientState(), site()
    for number, (depth, taps) in enumerate([(3, set()), (2, {"hidden"}), (1, {"hidden", "conv"})], start=1):
        before = state.memory.get("heads", {})
        state = tiny.fit(fedd2s(), job(depth, samples=table(), state=state, number=number), at).state
        found = state.memory.get("heads", {})
        assert set(found) == taps
        for tap in before:
            tiny.assert_same_weights(found[tap], before[tap])
    again = tiny.fit(fedd2s(), job(1, samples=table(), state=state, number=4), at).state
    assert tiny.canonical(again.memory["heads"]["conv"]) != tiny.canonical(state.memory["heads"]["conv"])


def test_no_parameter_of_a_client_travels():
    payload = tiny.fit(fedd2s(), job(1, samples=table()), site()).payload
    assert payload.kinds() == {"samples", "numbers"}
    assert set(payload.samples) == {"taps", "logits", "labels"}


def test_a_head_goes_up_where_it_is_asked_for():
    reply = tiny.fit(fedd2s(), job(1, head_up=1), site())
    tiny.assert_same_weights(reply.payload.generator, reply.state.memory["heads"]["conv"])
    assert tiny.fit(fedd2s(), job(3, head_up=1), site()).payload.generator == {}


def test_clients_of_one_seed_begin_with_the_same_head_unless_they_begin_apart():
    still = fedd2s(lambda_c=0.0, mu=0.0)  # heads stay as they are made

    def made(client, common):
        at = site(still, task(common_init=common))
        return tiny.fit(still, replace(job(2), client=client), at).state.memory["heads"]["hidden"]

    tiny.assert_same_weights(made(0, True), made(1, True))
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(made(0, False), made(1, False))


# 8. A teacher's row belongs to its sample


def agreement(at, logits):
    """The divergence if the student says of each sample what the table says of it."""
    told = job(3, samples=logits)
    drawn = at.draw(told)
    known = at.client.consult(at, told, drawn.x, drawn.y, drawn.position)
    said = 10 * torch.eye(tiny.CLASSES)[drawn.y]
    return losses.softened_kl(known["teacher"], said, 3.0).item()


def test_rows_follow_the_shuffle():
    at = site()
    _, y = at.own(0)
    right = 10 * torch.eye(tiny.CLASSES)[y]
    assert agreement(at, right) == pytest.approx(0, abs=1e-6)
    assert agreement(at, right.roll(1, 0)) > 5


def test_a_table_of_other_length_is_refused():
    with pytest.raises(AssertionError, match="rows of logits"):
        tiny.fit(fedd2s(), job(3, samples=table(7)), site())


def test_without_a_table_there_is_no_divergence():
    assert set(tiny.fit(fedd2s(), job(3), site()).numbers) == {"ce"}
    assert set(tiny.fit(fedd2s(), job(1), site()).numbers) == {"ce", "head"}
    assert set(tiny.fit(fedd2s(), job(1, samples=table()), site()).numbers) == {"ce", "head", "kl"}


# 9. Reports


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_report_is_what_the_trained_student_says_of_raw_images(depth):
    problem = task(make=tiny.normed)
    at = site(problem=problem)
    reply = tiny.fit(fedd2s(), job(depth), at)
    student = problem.initial().load(reply.state.kept).eval()
    x, y = at.own(0)
    with torch.no_grad():
        u, found = student.taps(x, [heads.tap(student, depth)])
        (tap,) = found.values()
        local = reply.state.memory.get("heads", {}).get(heads.tap(student, depth))
        v = u if local is None else heads.logits(student, depth, "tail", local, tap, training=False)
    assert_close(reply.payload.samples["taps"], tap, rtol=0, atol=0)
    assert_close(reply.payload.samples["logits"], v, rtol=0, atol=0)
    assert reply.payload.samples["labels"].tolist() == y.tolist()
    assert reply.payload.numbers == {"depth": depth}


def test_reporting_twice_gives_the_same_and_moves_no_statistic():
    at = site(problem=task(make=tiny.normed))
    student = at.problem.initial()
    before = tiny.canonical(dict(student.weights))
    one, other = (fedd2s()._samples(at, student, job(1), Order(depth=1)) for _ in range(2))
    tiny.assert_same(tiny.canonical(one), tiny.canonical(other))
    tiny.assert_same(tiny.canonical(dict(student.weights)), before)


def test_fewer_rows_are_the_same_rows_in_every_round():
    at, order = site(), Order(depth=1, max_samples=5)
    rows = reported(at, job(1), order)
    assert len(rows) == 5 == len(rows.unique())
    assert torch.equal(rows, reported(at, job(1, number=9), order))
    reply = tiny.fit(fedd2s(), job(1, max_samples=5, samples=table(5)), at)
    assert reply.payload.samples["labels"].tolist() == at.own(0)[1][rows].tolist()
    known = fedd2s().consult(at, job(1, max_samples=5, samples=table(5)), *at.own(0), torch.arange(SIZE))
    assert known["taught"].nonzero().flatten().tolist() == rows.tolist()
    assert torch.equal(known["teacher"][rows], table(5))


def test_the_untaught_part_of_a_batch_counts_as_zero():
    at, told = site(), job(3, samples=table())
    batch, module = first_batch(at, told), at.problem.initial()
    half = replace(batch, known={**batch.known, "taught": torch.arange(8) < 4})
    v = module(batch.x).detach()
    expected = losses.softened_kl(batch.known["teacher"][:4], v[:4], 3.0) / 2
    assert_close(dict(fedd2s().terms(module, half, told))["kl"].detach(), expected)
    none = replace(batch, known={**batch.known, "taught": torch.zeros(8, dtype=torch.bool)})
    assert set(dict(fedd2s().terms(module, none, told))) == {"ce"}


def test_taps_can_be_averaged_before_they_go():
    reply = tiny.fit(fedd2s(), job(1, pool=1, head=heads.KINDS.index("flat")), site())
    assert reply.payload.samples["taps"].shape == (SIZE, 2, 1, 1)
    assert reply.state.memory["heads"]["conv"]["head.weight"].shape == (tiny.CLASSES, 2)


# 10. Class means


def test_class_means_are_reported_with_their_counts():
    at = site()
    means = tiny.fit(fedd2s(), job(2, per_class=1), at).payload.samples
    whole = tiny.fit(fedd2s(), job(2), at).payload.samples
    y = whole["labels"].long()
    assert means["labels"].tolist() == [0, 1, 2]
    assert means["counts"].tolist() == torch.bincount(y).tolist()
    assert int(means["counts"].sum()) == SIZE
    for row, label in enumerate(means["labels"]):
        assert_close(means["taps"][row], whole["taps"][y == label].mean(0))
        assert_close(means["logits"][row], whole["logits"][y == label].mean(0))


def test_per_class_is_per_sample_where_each_class_has_one_sample():
    problem = task()
    at = tiny.site(fedd2s(), problem, sizes=(3, 3, 3))
    _, y = at.own(0)
    order = y.argsort()
    by_sample, by_class = table(3), table(3)[y]
    for depth in (1, 2, 3):
        told = with_head(at, job(depth, samples=by_class)) if depth < 3 else job(depth, samples=by_class)
        other = replace(told, payload=job(depth, samples=by_sample, per_class=1).payload)
        assert set(y.tolist()) == {0, 1, 2}
        module = at.problem.initial()
        one, first = gradients(fedd2s(), at, told, module, first_batch(at, told, 3))
        two, second = gradients(fedd2s(), at, other, module, first_batch(at, other, 3))
        assert_close(one, two)
        for name in first:
            assert_close(first[name], second[name])
    rows = tiny.fit(fedd2s(), job(3), at).payload.samples
    means = tiny.fit(fedd2s(), job(3, per_class=1), at).payload.samples
    assert_close(means["taps"], rows["taps"][order])


def test_a_class_table_teaches_the_classes_that_it_has():
    given_table = {"logits": table(2), "labels": torch.tensor([0, 2], dtype=torch.uint8)}
    at = site()
    known = fedd2s().consult(at, job(1, samples=given_table), *at.own(0), torch.arange(SIZE))
    y = at.own(0)[1]
    assert torch.equal(known["taught"], y != 1)
    assert torch.equal(known["teacher"][y == 2], table(2)[1].expand(int((y == 2).sum()), -1))


def test_smoothed_labels_stand_in_for_a_teacher():
    at = site()
    told = job(1, smoothing=0.3)
    known = fedd2s().consult(at, told, *at.own(0), torch.arange(SIZE))
    probs = known["teacher"].softmax(1)
    assert_close(probs.gather(1, at.own(0)[1][:, None]).flatten(), torch.full((SIZE,), 0.8))
    reply = tiny.fit(fedd2s(), told, at)
    assert set(reply.numbers) == {"ce", "head", "kl"}
    assert reply.payload.samples == {}


# 11. Copies


@pytest.mark.parametrize("depth", [1, 2])
def test_a_copied_head_says_at_first_what_the_student_says(depth):
    quiet = fedd2s(lambda_c=0.0, mu=0.0)  # nothing trains the head
    problem = task(make=tiny.normed)
    at = site(quiet, problem)
    state = tiny.fit(quiet, job(3), at).state
    before = problem.initial().load(state.kept).eval()
    after = tiny.fit(quiet, job(depth, is_copy=1, state=state, number=2), at).state
    entries = after.memory["heads"][heads.tap(before, depth)]
    x = torch.randn(50, 1, tiny.SIDE, tiny.SIDE, generator=STREAM.torch())
    with torch.no_grad():
        u, found = before.taps(x, [heads.tap(before, depth)])
        (tap,) = found.values()
        v = heads.logits(before, depth, "tail", entries, tap, training=False)
    assert_close(v, u, rtol=0, atol=0)


# Other readings


def test_through_the_student_itself_the_divergence_is_of_the_student():
    at = site(problem=task(make=tiny.normed))
    told = job(1, samples=table(), student=orders.STUDENTS.index("through"))
    module = at.problem.initial()
    terms = dict(fedd2s().terms(module, first_batch(at, told), told))
    assert set(terms) == {"ce", "kl"}
    batch = first_batch(at, told)
    assert_close(terms["kl"].detach(), losses.softened_kl(batch.known["teacher"], module(batch.x).detach(), 3.0))
    assert "heads" not in tiny.fit(fedd2s(), told, at).state.memory


def test_the_servers_head_is_used_as_it_came():
    at = site()
    (entries,) = with_head(at, job(1)).state.memory["heads"].values()
    told = job(1, samples=table(), student=orders.STUDENTS.index("global_head"))
    told = replace(told, payload=replace_generator(told.payload, entries))
    before = tiny.canonical(told)
    reply = tiny.fit(fedd2s(), told, at)
    tiny.assert_same(tiny.canonical(told), before)
    assert set(reply.numbers) == {"ce", "head", "kl"}
    assert "heads" not in reply.state.memory
    without = replace(told, payload=job(1, student=told.payload.numbers["student"].__int__()).payload)
    assert set(tiny.fit(fedd2s(), without, at).numbers) == {"ce"}


def test_a_still_exchange_reports_and_changes_nothing():
    reply = tiny.fit(fedd2s(), job(2, is_still=1), site())
    tiny.assert_same_weights(reply.state.kept, task().initial().weights)
    assert reply.state.memory == {}, "a head that nobody trained must not speak"
    assert len(reply.payload.samples["labels"]) == SIZE
    silent = tiny.fit(fedd2s(), job(2, is_silent=1, exchange=1, samples=table(), state=reply.state), site())
    assert silent.payload.samples == {}
    assert set(silent.numbers) == {"ce", "head", "kl"}


def test_a_tenth_is_held_out_to_judge_and_never_trains(monkeypatch):
    drawn = []
    draw = Site.draw
    monkeypatch.setattr(Site, "draw", lambda self, told: drawn.append((self, draw(self, told))) or drawn[-1][1])
    reply = tiny.fit(fedd2s(), job(1, held_out=1), site())
    ((at, used),) = drawn
    assert len(at.train_index[0]) == 18
    assert len(at.test_index[0]) == 2
    assert set(at.train_index[0].tolist()) | set(at.test_index[0].tolist()) == set(range(SIZE))
    assert len(used.position) == 2 * 18
    assert 0 <= reply.payload.numbers["held_out"] <= 1
    assert len(reply.payload.samples["labels"]) == Order(held_out=1).rows(SIZE) == 18


def test_the_same_job_gives_the_same_bytes():
    told = job(1, samples=table())
    one, other = (tiny.lasting(tiny.fit(fedd2s(), told, site())) for _ in range(2))
    tiny.assert_same(one, other)
