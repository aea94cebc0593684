"""DS-FL's client half: invariants (docs/strategies/dsfl.md, equation 3)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.dsfl import DSFL
from clients.supervised import Supervised
from fedkd.data.samples import Proxy
from fedkd.maths import losses
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.training import forward, public_set

PUBLIC = Proxy("tiny", replace(tiny.samples(30, seed=5), y=torch.full((30,), -1)), is_labelled=False, checksum=12345)
SIZE = 10


@pytest.fixture
def problem():
    return tiny.problem(proxy=PUBLIC)


@pytest.fixture
def site(problem):
    return tiny.site(Supervised(), problem)


def client(**changes) -> DSFL:
    return DSFL(DSFL.Config(**changes))


def asked(problem, exchange, target=None, **changes):
    payload = Payload(probe_logits=target, numbers=public_set.describe(problem, SIZE))
    return tiny.job(problem, payload=payload, exchange=exchange, **changes)


def test_it_trains_on_its_own_data_and_says_probabilities(problem, site):
    found = tiny.fit(client(), asked(problem, 0), site)
    its = tiny.fit(Supervised(), tiny.job(problem, payload=Payload()), site)
    tiny.assert_same_weights(found.state.kept, its.state.kept)
    x = public_set.agreed_images(problem, public_set.describe(problem, SIZE), 1)
    expected = forward.logits(problem.initial().load(found.state.kept), x).softmax(1)
    assert found.payload.kinds() == {"probe_logits"}
    assert torch.equal(found.payload.probe_logits, expected)


def test_then_it_learns_the_target_and_sends_nothing(problem, site):
    said = tiny.fit(client(), asked(problem, 0), site)
    target = torch.eye(3)[torch.arange(SIZE) % 3]
    its = client(distil_epochs=30, distil_lr=0.1)
    found = tiny.fit(its, asked(problem, 1, target, state=said.state), site)
    assert found.payload.kinds() == frozenset()
    assert set(found.numbers) == {"distil"}
    x = public_set.agreed_images(problem, public_set.describe(problem, SIZE), 1)
    before, after = (
        float(losses.cross_entropy(forward.logits(problem.initial().load(state.kept), x), target))
        for state in (said.state, found.state)
    )
    assert after < 0.9 * before
    assert found.state.position == said.state.position


def test_the_term_is_the_cross_entropy_with_the_target(problem, job):
    student, x = problem.initial(), public_set.agreed_images(problem, public_set.describe(problem, SIZE), 1)
    target = torch.rand(SIZE, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    batch = Batch(x, torch.full((SIZE,), -1), 0, SIZE, per_sample={"target": target})
    (found,) = client().terms(student, batch, job)
    assert found[0] == "distil"
    assert_close(found[1], -(target * student(x).log_softmax(1)).sum(1).mean())


def test_another_public_set_is_a_failure(problem, site):
    job = asked(replace(problem, proxy=replace(PUBLIC, checksum=1)), 0)
    assert "checksum" in replace(site, client=client()).run(job).what
