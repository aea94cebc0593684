"""FedGen's client half: invariants (docs/strategies/fedgen.md, equations 6 to 8)."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from clients.fedgen import FedGen
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.client import Client
from fedkd.config import TrainConfig
from fedkd.data.samples import Samples
from fedkd.engine import Job, Reply
from fedkd.maths import losses
from fedkd.models import generators, students
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.training.site import LocalSite

CLASSES, NOISE = 10, 5
SIZES = (64, 40)


@pytest.fixture(scope="module")
def problem() -> Problem:
    make = partial(students.make, "fedgen-cnn", (1, 8, 8), CLASSES, "batch")
    train = TrainConfig(batch=16, steps=5, lr=0.05)
    return Problem(
        seed=3, rounds=9, clients=2, classes=CLASSES, input_shape=(1, 8, 8), make=make, statistics="local", train=train
    )


def site(problem: Problem, client: Client) -> LocalSite:
    draw = seeds.stream(1, "data").torch()
    x = torch.randint(0, 255, (sum(SIZES), 1, 8, 8), dtype=torch.uint8, generator=draw)
    y = torch.randint(0, CLASSES - 1, (sum(SIZES),), generator=draw)  # nobody holds the last label
    samples = Samples(x, y, (2 / 255,), (-1.0,))
    index = {0: torch.arange(SIZES[0]), 1: torch.arange(SIZES[0], sum(SIZES))}
    return LocalSite(problem, client, samples, samples, index, index)


def job(problem: Problem, round: int = 2, share: str = "all", counts: list[int] | None = None) -> Job:
    generator = generators.init(
        seeds.stream(5, "generator"), noise=NOISE, hidden=16, latent=problem.latent, classes=CLASSES
    )
    payload = Payload(
        weights=problem.shared(problem.initial().weights, share),
        generator=generator,
        label_counts=torch.tensor(counts or [1] * CLASSES),
    )
    return Job(task="train", client=0, round=round, payload=payload)


def train(problem: Problem, client: Client, order: Job) -> Reply:
    reply = site(problem, client).run(order)
    assert isinstance(reply, Reply), reply
    return reply


def gradients(problem: Problem, client: FedGen, order: Job, term: str) -> dict[str, torch.Tensor | None]:
    student = problem.initial().train()
    draw = seeds.stream(9, "batch").torch()
    x, y = torch.randn(16, 1, 8, 8, generator=draw), torch.randint(0, 4, (16,), generator=draw)
    batch = Batch(x, y, 0, 16, client.draw(order, y, 0, draw))
    value = dict(client.terms(student, batch, order))[term]
    entries = student.learnable
    return dict(zip(entries, torch.autograd.grad(value, list(entries.values()), allow_unused=True), strict=True))


# counters
def test_counters_less_one_add_up_to_the_samples_drawn(problem):
    counts = train(problem, FedGen(), job(problem)).payload.label_counts
    assert int((counts - 1).sum()) == 5 * 16 - 16 * 0  # 64 samples: 4 batches of 16 a pass, no short batch
    assert counts[CLASSES - 1] == 1, "a label nobody holds keeps the 1 it started with"


# FedAvg
@pytest.mark.parametrize("config", [{"alpha": 0.0, "beta": 0.0}, {"regularised_steps": 0}])
def test_without_regularisers_the_student_moves_as_in_fedavg_bit_for_bit(problem, config):
    order = job(problem)
    plain = replace(order, payload=Payload(weights=order.payload.weights))
    ours = train(problem, FedGen(FedGen.Config(**config)), order).payload.weights
    theirs = train(problem, Supervised(), plain).payload.weights
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_a_round_without_generator_is_fedavg_bit_for_bit(problem):
    plain = replace(job(problem), payload=Payload(weights=job(problem).payload.weights))
    ours, theirs = train(problem, FedGen(), plain), train(problem, Supervised(), plain)
    assert all(torch.equal(ours.payload.weights[n], theirs.payload.weights[n]) for n in theirs.payload.weights)
    assert set(ours.numbers) == {"ce"}


@pytest.mark.parametrize(("switch", "term"), [("alpha", "latent"), ("beta", "kl")])
def test_a_weight_of_zero_switches_the_term_off_although_there_is_a_floor(problem, switch, term):
    on = train(problem, FedGen(), job(problem)).numbers
    off = train(problem, FedGen(FedGen.Config(**{switch: 0.0})), job(problem)).numbers
    assert term in on
    assert term not in off


# gradients
def test_latent_term_reaches_the_head_alone(problem):
    found = gradients(problem, FedGen(), job(problem), "latent")
    assert all((g is not None and g.abs().sum() > 0) == n.startswith("head.") for n, g in found.items())


def test_latent_term_weighs_each_latent_as_a_sample(problem):
    """B_G / B: twice alpha, for 32 latents beside 16 samples."""
    order, client = job(problem, round=1), FedGen(FedGen.Config(alpha=3.0, synthetic_batch=32))
    student, draw = problem.initial().eval(), seeds.stream(9, "batch").torch()
    x, y = torch.randn(16, 1, 8, 8, generator=draw), torch.randint(0, 4, (16,), generator=draw)
    drawn = client.draw(order, y, 0, draw)
    value = dict(client.terms(student, Batch(x, y, 0, 16, drawn), order))["latent"]
    latents = generators.generate(order.payload.generator, drawn["labels"], drawn["noise"])
    torch.testing.assert_close(value, 2 * 3.0 * losses.cross_entropy(student.classify(latents), drawn["labels"]))


def test_latent_kl_reaches_the_extractor_and_is_blind_to_its_target(problem):
    """Its gradient equals that of KL to a constant target: nothing flows through q."""
    order, client = job(problem), FedGen(FedGen.Config(alpha=0.0, beta=1.0, regulariser_decay=1.0))
    found = gradients(problem, client, order, "kl")
    student = problem.initial().train()
    draw = seeds.stream(9, "batch").torch()
    x, y = torch.randn(16, 1, 8, 8, generator=draw), torch.randint(0, 4, (16,), generator=draw)
    drawn = client.draw(order, y, 0, draw)
    z = generators.generate(order.payload.generator, y, drawn["noise_real"])
    constant = student.classify(z).softmax(1).detach().clone()
    value = losses.kl(constant, student(x))
    expected = torch.autograd.grad(value, list(student.learnable.values()))
    for name, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(found[name], gradient)
    assert found["conv1.conv.weight"].abs().sum() > 0


def test_client_steps_never_change_the_generator(problem):
    order = job(problem)
    before = {n: t.clone() for n, t in order.payload.generator.items()}
    train(problem, FedGen(), order)
    assert all(torch.equal(order.payload.generator[n], before[n]) for n in before)


# KL, equation 7
def test_latent_kl_is_a_divergence():
    logits = torch.randn(6, 4, generator=seeds.stream(0, "kl").torch())
    assert float(losses.kl(logits.softmax(1), logits)) == pytest.approx(0, abs=1e-6)
    assert float(losses.kl(logits.flip(0).softmax(1), logits)) > 0


# schedules, equation 8
@pytest.mark.parametrize(("round", "value"), [(1, 10), (2, 9.8), (51, 3.6417), (200, 0.17947), (2000, 1e-4)])
def test_weights_of_the_regularisers_decay_to_the_floor(round, value):
    assert FedGen()._weight(10.0, round) == pytest.approx(value, rel=1e-4)


# coverage
def test_a_label_the_client_lacks_still_teaches_its_row_of_the_head(problem):
    counts = [0] * (CLASSES - 1) + [5]  # the federation has only ever seen the label that this client lacks
    order = job(problem, counts=counts)
    found = gradients(problem, FedGen(), order, "latent")["head.weight"][CLASSES - 1]
    assert found.abs().sum() > 0
    client = FedGen(FedGen.Config(beta=0.0))
    moved = train(problem, client, order).payload.weights["head.weight"][CLASSES - 1]
    unmoved = train(problem, FedGen(FedGen.Config(alpha=0.0, beta=0.0)), order).payload.weights["head.weight"][
        CLASSES - 1
    ]
    assert not torch.equal(moved, unmoved)


def test_synthetic_labels_are_those_reported_so_far(problem):
    order = job(problem, counts=[0, 3, 0, 9] + [0] * 6)
    y = torch.zeros(4, dtype=torch.int64)
    for law in ("uniform", "proportional"):
        drawn = FedGen(FedGen.Config(synthetic_labels=law, synthetic_batch=200)).draw(
            order, y, 0, seeds.stream(1, "x").torch()
        )
        assert set(drawn["labels"].tolist()) == {1, 3}
    assert (drawn["labels"] == 3).float().mean() == pytest.approx(0.75, abs=0.1)


def test_only_the_first_steps_are_regularised(problem):
    client = FedGen(FedGen.Config(regularised_steps=3))
    y = torch.zeros(4, dtype=torch.int64)
    draws = [bool(client.draw(job(problem), y, step, seeds.stream(1, "x").torch())) for step in range(5)]
    assert draws == [True, True, True, False, False]


# head only
def test_head_only_keeps_the_extractor_and_sends_head_and_counters_alone(problem):
    reply = train(problem, FedGen(), job(problem, share="head"))
    assert set(reply.payload.weights) == {"head.weight", "head.bias"}
    assert {"conv1.conv.weight", "conv1.norm.running_mean"} <= set(reply.state.kept)
    up = reply.payload.num_bytes()
    assert up == {"weights": 4 * (32 * CLASSES + CLASSES), "label_counts": 8 * CLASSES}


def test_local_statistics_stay_with_the_client(problem):
    reply = train(problem, FedGen(), job(problem))
    assert not any("running" in name for name in reply.payload.weights)
    assert {"conv1.norm.running_mean", "conv1.norm.running_var"} <= set(reply.state.kept)
