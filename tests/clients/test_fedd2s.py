"""FedD2S's client half: golden numbers and invariants (docs/strategies/fedd2s.md, equations 1 and 2)."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from taps import fedd2s, first_batch, gradients, job, replace_generator, site, table, task, with_head
from torch import nn
from torch.testing import assert_close

from clients.fedd2s import FedD2S
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.distillation import heads
from fedkd.engine import ClientState, Job
from fedkd.maths import losses
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training.site import LocalSite

# Golden, worked out apart from this code


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
    per_sample = {"teacher": torch.tensor([[0.0, 1]], dtype=torch.float64)}
    batch = Batch(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]), 0, 1, per_sample=per_sample)
    found, grads = gradients(fedd2s(temperature=2.0), None, told, student, batch)
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


# Dropped blocks feel nothing of the federation


@pytest.mark.parametrize("student", ["local_head", "global_head"])
@pytest.mark.parametrize("depth", [1, 2])
def test_dropped_blocks_have_the_gradient_of_local_training_bit_for_bit(student, depth):
    at = site()
    told = with_head(at, job(depth, samples=table()))
    (entries,) = told.state.memory["heads"].values()
    told = replace(told, payload=replace_generator(told.payload, entries))
    module = at.problem.initial()
    _, grads = gradients(fedd2s(student=student), at, told, module, first_batch(at, told))
    x, y = first_batch(at, told).x, first_batch(at, told).y
    alone = torch.autograd.grad(losses.cross_entropy(module(x), y), list(module.learnable.values()))
    dropped = tuple(f"{name}." for name, _ in list(module.named_children())[depth:])
    for name, expected in zip(module.learnable, alone, strict=True):
        assert torch.equal(grads[name], expected) == name.startswith(dropped), name


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
    """Making a head must not move the stream of batches."""
    drawn = []
    draw = LocalSite.draw
    monkeypatch.setattr(LocalSite, "draw", lambda self, told: drawn.append(draw(self, told)) or drawn[-1])
    for depth in (3, 1):
        tiny.fit(fedd2s(), job(depth), site())
    assert torch.equal(drawn[0].position, drawn[1].position)


# The divergence


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


# What changes, and what travels


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
    reply = tiny.fit(fedd2s(head_up=True), job(1), site())
    tiny.assert_same_weights(reply.payload.generator, reply.state.memory["heads"]["conv"])
    assert tiny.fit(fedd2s(head_up=True), job(3), site()).payload.generator == {}


def test_clients_of_one_seed_begin_with_the_same_head_unless_they_begin_apart():
    still = fedd2s(lambda_c=0.0, mu=0.0)  # heads stay as they are made

    def made(client, common):
        at = site(still, task(common_init=common))
        return tiny.fit(still, replace(job(2), client=client), at).state.memory["heads"]["hidden"]

    tiny.assert_same_weights(made(0, True), made(1, True))
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(made(0, False), made(1, False))


# Adapters


def adapting(**changes) -> FedD2S:
    return fedd2s(hetero="adapter", head_arch="flat", **changes)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_adapter_learns_at_every_depth_and_brings_taps_to_one_width(depth):
    at, state = site(), ClientState()
    made = tiny.fit(adapting(mu=0.0), job(depth), at).state.memory["heads"]
    for number in (1, 2):
        reply = tiny.fit(adapting(), job(depth, samples=table(), state=state, number=number), at)
        state = reply.state
    (tap,) = state.memory["heads"]
    entries = state.memory["heads"][tap]
    assert not torch.equal(entries["adapter.weight"], made[tap]["adapter.weight"])
    assert reply.payload.samples["taps"].shape == (20, heads.ADAPTED)
    student = at.problem.initial().load(state.kept).eval()
    x, _ = at.train.take(at.train_index[0])
    _, found = student.taps(x, [tap])
    assert torch.equal(reply.payload.samples["taps"], heads.features(found[tap], 0, entries))


def test_while_nothing_is_dropped_an_adapter_changes_nothing_in_the_student():
    plain = tiny.fit(fedd2s(), job(3, samples=table()), site()).state
    beside = tiny.fit(adapting(), job(3, samples=table()), site()).state
    tiny.assert_same_weights(plain.kept, beside.kept)
    first = tiny.fit(adapting(mu=0.0, lambda_c=0.0), job(3), site()).state.memory["heads"]["hidden"]
    assert not torch.equal(beside.memory["heads"]["hidden"]["adapter.weight"], first["adapter.weight"]), "it learns"


def test_heads_behind_adapters_begin_alike_at_every_tap():
    still = adapting(lambda_c=0.0, mu=0.0)
    one, other = (tiny.fit(still, job(d), site(still)).state.memory["heads"] for d in (1, 2))
    assert torch.equal(one["conv"]["head.weight"], other["hidden"]["head.weight"])
    assert one["conv"]["adapter.weight"].shape != other["hidden"]["adapter.weight"].shape


def test_an_adapter_stays_at_home():
    sent = tiny.fit(adapting(head_up=True), job(1), site()).payload.generator
    assert set(sent) == {"head.weight", "head.bias"}
