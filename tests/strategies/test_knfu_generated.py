import math
from collections import OrderedDict

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from clients.knfu_generated import KnFuGenerated as Client
from fedkd import seeds
from fedkd.errors import ConfigError
from fedkd.maths import affinity
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from fedkd.student import Student
from strategies import knfu_generated
from strategies.knfu_generated import KnFuGenerated

STREAM = seeds.stream(0, "aggregate")
FEW = {"latents": 30, "generator_steps": 3, "hidden": 8, "noise": 4}


def strategy(**config):
    return KnFuGenerated(KnFuGenerated.Config(**{**FEW, **config}))


def head(seed, scale=2.0):
    generator = seeds.stream(seed, "head").torch()
    weight = scale * torch.randn(tiny.CLASSES, tiny.LATENT, generator=generator)
    return {"head.weight": weight, "head.bias": torch.randn(tiny.CLASSES, generator=generator)}


def replies(heads, counts=(5, 5, 5), clients=None, round=1):
    clients = range(len(heads)) if clients is None else clients
    payloads = [Payload(weights=its, label_counts=torch.tensor(counts)) for its in heads]
    return [tiny.reply(client, round=round, payload=payload) for client, payload in zip(clients, payloads, strict=True)]


def fuse(heads, state=None, counts=(5, 5, 5), clients=None, round=1, **config):
    server = strategy(**config)
    state = server.init(tiny.problem(), STREAM) if state is None else state
    return server.aggregate(state, replies(heads, counts, clients, round), STREAM)


def test_teachers_are_the_heads_predictions_of_the_latents_fused_as_by_knfu():
    heads = [head(seed) for seed in range(3)]
    state, found = fuse(heads, beta=2.0, temperature=2.0)
    z = state.latents["z"]
    logits = torch.stack([z @ h["head.weight"].T + h["head.bias"] for h in heads]).double()
    W = affinity.weights(affinity.distance(affinity.epd(logits.softmax(-1))), 2.0)
    expected = affinity.mix(W, (logits / 2).softmax(-1))
    assert_close(torch.stack([state.teachers[k] for k in range(3)]).exp().double(), expected, rtol=1e-4, atol=1e-5)
    assert_close(torch.tensor(found["weights"]), W.float(), rtol=0, atol=1e-4)


def test_latents_are_balanced_over_the_labels_seen_so_far():
    state, _ = fuse([head(0), head(1)], counts=(7, 0, 1))
    assert torch.bincount(state.latents["y"]).tolist() == [15, 0, 15]
    assert state.labels_seen.tolist() == [14, 0, 2]
    after, _ = fuse([head(0)], state, counts=(0, 1, 0), clients=[1], round=2)
    assert torch.bincount(after.latents["y"]).tolist() == [10, 10, 10]


def test_while_fewer_than_two_labels_are_seen_nobody_is_taught():
    assert fuse([head(0), head(1)], counts=(9, 0, 0))[0].teachers == {}
    assert fuse([head(0), head(1)], counts=(0, 0, 0))[0].teachers == {}


def test_a_collapsed_generator_leaves_everybody_to_itself():
    flat = [head(seed, scale=0.0) for seed in range(3)]
    _, found = fuse(flat, beta=0)
    assert found["head_variety"] == pytest.approx(0, abs=1e-9)
    assert (found["is_local"], found["weights"]) == (1.0, torch.eye(3).tolist())
    assert fuse(flat, beta=0, least_variety=0)[1]["is_local"] == 0.0


def test_variety_is_the_mean_total_variation_of_two_latents():
    probs = torch.tensor([[[1.0, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]])
    assert knfu_generated.variety(probs) == pytest.approx((1 + 0) / 2)
    assert knfu_generated.variety(probs[:, :1]) == 0


def test_absent_clients_are_no_source_and_receive():
    state, _ = fuse([head(seed) for seed in range(3)])
    after, found = fuse([head(7)], state, clients=[1], round=2)
    W = torch.tensor(found["weights"])
    assert W.tolist() == [[0.0, 1.0, 0.0]] * 3
    assert sorted(after.teachers) == [0, 1, 2]
    assert after.teachers[0] is after.teachers[1]
    assert after.heads[0] is state.heads[0]


def test_all_start_from_one_head_and_get_their_own_back():
    server = strategy()
    state = server.init(tiny.problem(), STREAM)
    planned = server.plan(state, Cohort((0, 2), 1))
    assert planned[0] is planned[2]
    assert planned[0].kinds() == {"weights"}
    after, _ = fuse([head(0), head(1)])
    planned = server.plan(after, Cohort((0, 1, 2), 2))
    assert planned[1].weights is after.heads[1]
    assert planned[1].samples is planned[0].samples
    assert planned[2].kinds() == {"weights"}
    assert server.evaluation_payload(after, 1).weights is after.heads[1]
    assert server.evaluation_payload(after, None) is None


def test_one_client_without_itself_has_no_teacher():
    state, found = fuse([head(0)], include_self=False, least_variety=0)
    assert state.teachers == {}
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))


def test_the_generator_learns_what_the_heads_recognise():
    heads = [head(seed) for seed in range(2)]
    few, many = (fuse(heads, generator_steps=steps, generator_lr=0.01)[1]["fidelity"] for steps in (1, 200))
    assert many > 0.8 > few


def test_an_extractor_never_leaves_its_client():
    site = tiny.site(Client(), tiny.problem())
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(strategy(), site), engine, 2)
    size = 4 * tiny.CLASSES * (tiny.LATENT + 1)
    assert played[0].row["bytes"]["up"] == {"weights": 3 * size, "label_counts": 3 * 8 * tiny.CLASSES}
    assert played[1].row["bytes"]["down"]["samples"] == 3 * 30 * (4 * tiny.LATENT + 8)
    assert played[1].row["bytes"]["down"]["probe_logits"] == 3 * 30 * 4 * tiny.CLASSES
    assert all(set(own.kept) == {"hidden.1.weight", "hidden.1.bias"} for own in played[-1].state.clients.values())


def narrow():
    """A student whose latent has two coordinates."""
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(tiny.SIDE**2, 2))
    return Student(OrderedDict(hidden=hidden, head=nn.Linear(2, tiny.CLASSES)))


def test_students_of_different_latent_width_are_refused():
    mixture = {"wide": tiny.plain, "narrow": narrow, "normed": tiny.normed}
    with pytest.raises(ConfigError, match="equal latent width, got narrow 2, wide 4"):
        strategy().init(tiny.problem(mixture=mixture, assigned=("wide", "narrow", "wide")), STREAM)
    assert strategy().init(tiny.problem(mixture=mixture, assigned=("wide", "normed", "wide")), STREAM).round == 0
