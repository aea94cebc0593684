from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.knfu_generated import KnFuGenerated
from clients.supervised import Supervised
from fedkd.maths import losses
from fedkd.participation import Batch
from fedkd.payload import Payload

Z = torch.arange(24.0).view(6, tiny.LATENT).sin()
Y = torch.arange(6) % tiny.CLASSES
TEACHER = torch.arange(18.0).view(6, tiny.CLASSES).cos()


def client(**config):
    return KnFuGenerated(KnFuGenerated.Config(**config))


def taught(site):
    head = site.problem.shared(site.problem.initial().weights, "head")
    payload = Payload(weights=head, samples={"z": Z, "y": Y}, probe_logits=TEACHER)
    return tiny.job(site.problem, payload=payload)


def alone(site):
    return replace(taught(site), payload=Payload(weights=taught(site).payload.weights))


@pytest.fixture
def site():
    return tiny.site(client(), tiny.problem())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_terms_teach_the_drawn_latents(site, temperature):
    x, y = site.train.take(torch.arange(4))
    student, rows = site.problem.initial(), torch.tensor([5, 1, 1])
    chosen = client(gamma=0.5, alpha=2.0, temperature=temperature)
    found = dict(chosen.terms(student, Batch(x, y, 0, 4, {"rows": rows}), taught(site)))
    logits = student.classify(Z[rows])
    kl = losses.kl(TEACHER[rows].softmax(1), logits / temperature)
    assert_close(found["knfu"], 0.5 * temperature**2 * kl)
    assert_close(found["latent"], 2.0 * losses.cross_entropy(logits, Y[rows]))


def test_the_extractor_gets_no_gradient_from_latents(site):
    x, y = site.train.take(torch.arange(4))
    student = site.problem.initial()
    found = dict(client().terms(student, Batch(x, y, 0, 4, {"rows": torch.arange(3)}), taught(site)))
    for name in ("knfu", "latent"):
        parameters = list(student.learnable.values())
        gradients = torch.autograd.grad(found[name], parameters, allow_unused=True, retain_graph=True)
        reached = {entry for entry, gradient in zip(student.learnable, gradients, strict=True) if gradient is not None}
        assert reached == {"head.weight", "head.bias"}


def test_latents_are_drawn_from_its_own_stream_once_there_are_any(site):
    draws = client(latent_batch=50).draw(taught(site), Y, 0, torch.Generator().manual_seed(1))
    assert set(draws["rows"].tolist()) == set(range(6))
    assert client().draw(alone(site), Y, 0, torch.Generator().manual_seed(1)) == {}


def test_without_latents_or_weights_of_its_terms_it_is_plain_training(site):
    plain = tiny.fit(Supervised(), alone(site), site)
    for its, job in ((client(), alone(site)), (client(gamma=0, alpha=0), taught(site))):
        reply = tiny.fit(its, job, site)
        tiny.assert_same_weights(reply, plain)
        tiny.assert_same_weights(reply.state.kept, plain.state.kept)


def test_it_sends_its_head_and_the_labels_it_drew(site):
    reply = tiny.fit(site.client, taught(site), site)
    assert set(reply.payload.weights) == {"head.weight", "head.bias"}
    assert int(reply.payload.label_counts.sum()) == tiny.TRAIN.steps * tiny.TRAIN.batch
