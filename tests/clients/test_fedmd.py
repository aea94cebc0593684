"""FedMD's client half: invariants (docs/strategies/fedmd.md, equation 2)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.fedmd import FedMD
from clients.supervised import Supervised
from fedkd.data.samples import Proxy
from fedkd.engine import ClientState
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.training import forward, public_set

PUBLIC = Proxy("tiny", tiny.samples(30, seed=5), True, 12345)
SIZE = 10


@pytest.fixture
def problem():
    return tiny.problem(proxy=PUBLIC)


@pytest.fixture
def site(problem):
    return tiny.site(Supervised(), problem)


def client(**changes) -> FedMD:
    return FedMD(FedMD.Config(**changes))


def prepared(public_epochs: int, private_epochs: int) -> FedMD:
    return client(public_epochs=public_epochs, private_epochs=private_epochs)


def say(problem, **changes):
    return tiny.job(problem, payload=Payload(numbers=public_set.describe(problem, SIZE)), **changes)


def learn(problem, consensus, **changes):
    payload = Payload(probe_logits=consensus, numbers=public_set.describe(problem, SIZE))
    return tiny.job(problem, payload=payload, exchange=1, **changes)


def images(problem, round=1):
    return public_set.agreed_images(problem, public_set.describe(problem, SIZE), round)


def test_it_says_the_logits_of_its_student_in_eval_mode_and_trains_nothing():
    problem = tiny.problem(tiny.normed, proxy=PUBLIC)
    found = tiny.fit(client(), say(problem), tiny.site(Supervised(), problem))
    expected = forward.logits(problem.initial(), images(problem))
    assert found.payload.kinds() == {"probe_logits"}
    assert torch.equal(found.payload.probe_logits, expected)
    tiny.assert_same_weights(found.state.kept, problem.initial())
    assert (found.state.epoch, found.state.position) == (0, 0)


def test_digesting_its_own_logits_has_no_loss_and_no_weights_go_up(problem, site):
    own = forward.logits(problem.initial(), images(problem))
    for digest in ("l1", "mse", "kl"):
        found = tiny.fit(client(digest=digest), learn(problem, own), site)
        assert found.numbers["digest"] == pytest.approx(0, abs=1e-6)
        assert found.payload.kinds() == frozenset()


def test_own_logits_change_nothing_so_that_only_the_revisit_is_left(problem, site):
    own = forward.logits(problem.initial(), images(problem))
    mine = tiny.fit(client(digest="mse"), learn(problem, own), site)
    its = tiny.fit(Supervised(), tiny.job(problem, payload=Payload()), site)
    assert_close(dict(mine.state.kept), dict(its.state.kept), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("digest", ["l1", "mse", "kl"])
def test_digesting_brings_it_nearer_to_the_consensus(problem, site, digest):
    x, target = images(problem), 3 * torch.eye(3)[torch.arange(SIZE) % 3]
    its = replace(site, problem=replace(problem, train=replace(tiny.TRAIN, lr=1e-9)))
    found = tiny.fit(client(digest=digest, digest_epochs=20, digest_lr=0.1), learn(problem, target), its)
    known = Batch(x, torch.full((SIZE,), -1), 0, SIZE, per_sample={"consensus": target})
    before, after = (
        float(dict(client(digest=digest).terms(problem.initial().load(w), known, tiny.job(problem)))["digest"].detach())
        for w in ({}, found.state.kept)
    )
    assert after < 0.95 * before


def test_the_distances_are_of_logits_but_for_kl(problem, job):
    x, u = images(problem), torch.ones(SIZE, 3)
    student = problem.initial()
    batch = Batch(x, torch.full((SIZE,), -1), 0, SIZE, per_sample={"consensus": u})
    logits = student(x)
    expected = {
        "l1": (logits - u).abs().mean(),
        "mse": (logits - u).square().mean(),
        "kl": torch.nn.functional.kl_div(logits.log_softmax(1), u.softmax(1), reduction="batchmean"),
    }
    for digest, value in expected.items():
        (found,) = client(digest=digest).terms(student, batch, job)
        assert found[0] == "digest"
        assert_close(found[1], value)


def test_labels_of_the_public_set_are_not_used_after_the_start(problem, site):
    """The part of a round is stratified by them, so they are exchanged within the same strata."""
    y = (PUBLIC.samples.y + 1) % 3
    other = replace(problem, proxy=replace(PUBLIC, samples=replace(PUBLIC.samples, y=y)))
    assert torch.equal(public_set.part(problem, SIZE, 1), public_set.part(other, SIZE, 1))
    target = torch.ones(SIZE, 3)
    one, two = (tiny.fit(client(), learn(p, target), tiny.site(Supervised(), p)).state.kept for p in (problem, other))
    tiny.assert_same_weights(one, two)


def test_another_public_set_is_a_failure(problem, site):
    job = say(replace(problem, proxy=replace(PUBLIC, checksum=1)))
    found = replace(site, client=client()).run(job)
    assert "checksum" in found.what


def test_initial_training_happens_once_and_first_on_public_then_on_own_data(problem, site):
    first = tiny.fit(prepared(2, 3), say(problem), site)
    assert list(first.numbers) == ["initial_public", "initial_private"]
    assert not torch.equal(first.state.kept["head.bias"], problem.initial().weights["head.bias"])
    later = tiny.fit(prepared(2, 3), say(problem, state=first.state), site)
    assert not later.numbers
    tiny.assert_same_weights(later.state.kept, first.state.kept)


def test_each_initial_phase_has_its_switch(problem, site):
    assert list(tiny.fit(prepared(1, 0), say(problem), site).numbers) == ["initial_public"]
    assert list(tiny.fit(prepared(0, 1), say(problem), site).numbers) == ["initial_private"]


def test_it_knows_that_it_was_prepared_after_learning_too(problem, site):
    said = tiny.fit(prepared(1, 0), say(problem), site)
    learned = tiny.fit(client(), learn(problem, torch.ones(SIZE, 3), state=said.state), site)
    again = tiny.fit(prepared(1, 0), say(problem, state=learned.state, round=2), site)
    assert not again.numbers
    assert isinstance(again.state, ClientState)


def test_what_else_is_remembered_stays(problem, site):
    """Parts keep theirs in the same memory."""

    class Remembering(FedMD):
        def next_memory(self, trained, job):
            return {**trained.memory, "other": 1}

    found = tiny.fit(Remembering(), say(problem), site)
    assert found.state.memory == {"other": 1, "is_prepared": 1}
