"""FedFuse's client half: the prior in the loss and out of the knowledge, and what is learned of transfer images."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clients.fedfuse import FedFuse, restore_statistics
from clients.supervised import Supervised
from fedkd.config import TrainConfig
from fedkd.data.samples import Proxy
from fedkd.engine import ClientState, Job
from fedkd.participation import Batch
from fedkd.payload import Payload

PUBLIC = Proxy("public", tiny.samples(10, seed=9), is_labelled=True, checksum=12345)
PROBLEM = tiny.problem(proxy=PUBLIC)
TOLD = {"checksum": 12345.0}  # of the public set; without it images are generated
HELD = torch.ones(3, dtype=torch.int64)


def client(**changes: Any) -> FedFuse:
    return FedFuse(FedFuse.Config(**{"distil_batch": 4, **changes}))


def site_of(chosen: FedFuse, problem=PROBLEM):
    return tiny.site(chosen, problem)


def first(problem=PROBLEM, told: Mapping[str, float] = TOLD) -> Job:
    return tiny.job(problem, payload=Payload(numbers=told))


def second(state: ClientState, logits=None, held=HELD, problem=PROBLEM, told: Mapping[str, float] = TOLD) -> Job:
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)) if logits is None else logits
    payload = Payload(probe_logits=logits, label_counts=held, numbers=told)
    return tiny.job(problem, payload=payload, state=state, exchange=1)


def skewed(chosen: FedFuse, problem=PROBLEM):
    """A site whose client 0 holds 8, 3 and 0 samples of the labels."""
    site = site_of(chosen, problem)
    y = site.train.y[:30]
    index = torch.cat([(y == 0).nonzero().flatten()[:8], (y == 1).nonzero().flatten()[:3]])
    return replace(site, train_index={**site.train_index, 0: index})


# First exchange


def test_uniform_counts_make_prior_free_training_plain_training_to_the_bit():
    site = site_of(client())
    index = torch.arange(18)  # 6 samples of each label
    site = replace(site, train_index={**site.train_index, 0: index})
    kept = tiny.fit(site.client, first(), site).state.kept
    plain = tiny.fit(Supervised(), tiny.job(PROBLEM, payload=Payload()), site).state.kept
    tiny.assert_same_weights(kept, plain)


def test_with_the_prior_kept_it_is_local_training_whatever_the_counts():
    chosen = client(prior_free=False)
    site = skewed(chosen)
    kept = tiny.fit(chosen, first(), site).state.kept
    tiny.assert_same_weights(kept, tiny.fit(Supervised(), tiny.job(PROBLEM, payload=Payload()), site).state.kept)
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(kept, tiny.fit(client(), first(), site).state.kept)


def test_the_loss_is_cross_entropy_of_the_logits_with_the_prior():
    chosen = client()
    site, student = skewed(chosen), PROBLEM.initial()
    x, y = site.own(0)
    per_sample = chosen.precompute(site, first(), x, y, torch.arange(11))
    (term,) = chosen.terms(student, Batch(x, y, 0, 4, per_sample=per_sample), first())
    prior = torch.tensor([9.0, 4.0, 1.0]).div(14).log()
    assert term[0] == "ce"
    assert_close(term[1], F.cross_entropy(student(x) + prior, y))


def test_it_answers_without_the_prior_in_eval_mode_and_tells_its_counts():
    problem = tiny.problem(tiny.normed, proxy=PUBLIC)
    chosen = client()
    site = skewed(chosen, problem)
    reply = tiny.fit(chosen, first(problem), site)
    student = problem.initial().load(reply.state.kept).eval()
    assert_close(reply.payload.probe_logits, student(PUBLIC.samples.take(torch.arange(10))[0]).detach())
    assert reply.payload.label_counts.tolist() == [8, 3, 0]
    assert reply.payload.samples == {}


def test_counts_that_nobody_needs_are_not_told():
    chosen = client(trust="uniform")
    assert tiny.fit(chosen, first(), skewed(chosen)).payload.label_counts.tolist() == [0, 0, 0]


def test_noisy_counts_are_released_once_rounded_and_never_negative():
    chosen = client(count_noise=3.0)
    site = skewed(chosen)
    one = tiny.fit(chosen, first(), site)
    later = tiny.fit(chosen, replace(first(), round=2, state=one.state), site)
    forgetful = tiny.fit(chosen, replace(first(), round=2), site)
    released = one.payload.label_counts
    assert released.dtype == torch.int64
    assert (released >= 0).all()
    assert released.tolist() != [8, 3, 0]
    assert released.tolist() == later.payload.label_counts.tolist() == forgetful.payload.label_counts.tolist()
    assert_close(one.state.memory["log_prior"], torch.tensor([0.0, math.log(4 / 9), math.log(1 / 9)]))


def test_another_public_set_or_another_order_is_a_failure():
    with pytest.raises(AssertionError, match="public set differs"):
        tiny.fit(client(), first(told={"checksum": 1.0}), site_of(client()))


# Second exchange


@pytest.fixture
def trained() -> tuple[FedFuse, Any, ClientState]:
    chosen = client()
    site = skewed(chosen)
    return chosen, site, tiny.fit(chosen, first(), site).state


def test_the_second_loss_is_kl_beside_the_clients_own_data(trained):
    _, site, state = trained
    chosen, job = client(gamma=0.5), second(state)
    x, y = site.own(0)
    x, y = x[:10], y[:10]
    per_sample = chosen.precompute(site, job, x, y, torch.arange(10))
    student = PROBLEM.initial()
    terms = dict(chosen.terms(student, Batch(x, y, 0, 4, per_sample=per_sample), job))
    images = PUBLIC.samples.take(torch.arange(10))[0]
    target = job.payload.probe_logits.softmax(1)
    assert_close(terms["distil"], F.kl_div(student(images).log_softmax(1), target, reduction="batchmean"))
    prior = torch.tensor([9.0, 4.0, 1.0]).div(14).log()
    assert_close(terms["own"], 0.5 * F.cross_entropy(student(x) + prior, y))


def test_each_transfer_image_comes_once_a_pass_with_its_own_target_and_as_many_of_its_own(trained):
    _, site, state = trained
    chosen, seen = client(distil_epochs=2), []

    class Watched(FedFuse):
        def terms(self, student, batch, job):
            seen.append(batch)
            yield from super().terms(student, batch, job)

    job = second(state)
    tiny.fit(Watched(chosen.config), job, site)
    assert [len(batch.x) for batch in seen] == [len(batch.per_sample["transfer"]) for batch in seen] == [4, 4, 2] * 2
    images = PUBLIC.samples.take(torch.arange(10))[0]
    rows = [int((images == x).flatten(1).all(1).nonzero()) for batch in seen for x in batch.per_sample["transfer"]]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    targets = torch.cat([batch.per_sample["target"] for batch in seen])
    assert_close(targets, job.payload.probe_logits.softmax(1)[rows])


def test_labels_that_nobody_holds_teach_nothing(trained):
    """Whatever stands in their column, and whatever the student thinks of them."""
    chosen, site, state = trained
    logits = torch.randn(10, 3)
    held = torch.tensor([1, 1, 0])
    job = second(state, logits, held)
    x, y = site.own(0)
    x, y = x[:10], y[:10]
    student = PROBLEM.initial()
    per_sample = chosen.precompute(site, job, x, y, torch.arange(10))
    terms = dict(chosen.terms(student, Batch(x, y, 0, 4, per_sample=per_sample), job))
    (gradient,) = torch.autograd.grad(terms["distil"], student.learnable["head.bias"])
    assert gradient[2] == 0
    strange = replace(job, payload=replace(job.payload, probe_logits=logits + torch.tensor([0.0, 0.0, 88.0])))
    found = dict(
        chosen.terms(student, Batch(x, y, 0, 4, per_sample=chosen.precompute(site, strange, x, y, y)), strange)
    )
    assert_close(found["distil"], terms["distil"])


def test_learning_its_own_answers_moves_nothing_without_gamma(trained):
    """The gradient of KL at its minimum is 0 for plain SGD."""
    _, site, state = trained
    chosen = client(gamma=0.0)
    own = PROBLEM.initial().load(state.kept).eval()(PUBLIC.samples.take(torch.arange(10))[0]).detach()
    after = tiny.fit(chosen, second(state, own), site)
    for name, entry in after.state.kept.items():
        assert_close(entry, state.kept[name], rtol=0, atol=1e-5)
    assert set(after.numbers) == {"distil"}


def test_without_knowledge_the_second_exchange_changes_nothing(trained):
    chosen, site, state = trained
    job = replace(second(state), payload=Payload(numbers=TOLD))
    after = tiny.fit(chosen, job, site)
    tiny.assert_same(tiny.canonical(after.state), tiny.canonical(state))
    assert after.payload.kinds() == frozenset()
    assert not after.numbers


def test_the_second_exchange_leaves_the_draws_of_the_next_round_as_they_were(trained):
    """So that methods with and without it see the same batches."""
    chosen, site, state = trained
    after = tiny.fit(chosen, second(state), site).state
    assert (after.epoch, after.position) == (state.epoch, state.position)
    tiny.assert_same(tiny.canonical(after.memory), tiny.canonical(state.memory))


def test_adams_moments_are_shared_by_both_phases():
    train = TrainConfig(batch=4, steps=3, optimiser="adam", moments="keep", lr=1e-3)
    problem, chosen = replace(PROBLEM, train=train), client()
    site = site_of(chosen, problem)
    state = tiny.fit(chosen, first(problem), site).state
    assert state.optimiser["step"] == 3
    assert tiny.fit(chosen, second(state, problem=problem), site).state.optimiser["step"] == 3 + 3  # 4, 4 and 2 images


# Evaluation


def test_the_prior_counts_on_its_own_test_law_and_nowhere_else(trained):
    """With a uniform prior both agree."""
    chosen, site, state = trained
    student, x = PROBLEM.initial().eval(), site.own(0)[0]
    plain = student(x)
    for task, added in (
        ("evaluate", state.memory["log_prior"]),
        ("evaluate_common", 0.0),
        ("evaluate_pooled", 0.0),
    ):
        job = tiny.job(PROBLEM, task=task, state=state)
        assert_close(tiny.predict(chosen, student, x, job), plain + added)
    uniform = tiny.job(PROBLEM, task="evaluate", state=replace(state, memory={"log_prior": torch.zeros(3)}))
    assert torch.equal(tiny.predict(chosen, student, x, uniform).argmax(1), plain.argmax(1))


def test_a_client_that_never_trained_or_keeps_its_prior_is_judged_as_it_speaks():
    chosen, student = client(prior_free=False), PROBLEM.initial().eval()
    site = skewed(chosen)
    x = site.own(0)[0]
    state = tiny.fit(chosen, first(), site).state
    for known in (ClientState(), state):
        job = tiny.job(PROBLEM, task="evaluate", state=known)
        assert torch.equal(tiny.predict(chosen, student, x, job), student(x))


# Generated images


def test_it_sends_its_whole_student_where_images_are_to_be_generated():
    problem = tiny.problem(tiny.normed, statistics="local")
    chosen = client()
    reply = tiny.fit(chosen, first(problem, {}), site_of(chosen, problem))
    tiny.assert_same_weights({n: e[0] for n, e in reply.payload.samples.items()}, reply.state.kept)
    assert reply.payload.probe_logits.shape == (0, 3)


def test_it_learns_of_the_images_that_came_down():
    problem = tiny.problem(tiny.normed)
    chosen = client()
    site = site_of(chosen, problem)
    state = tiny.fit(chosen, first(problem, {}), site).state
    job = second(state, problem=problem, told={})
    images = torch.randint(0, 256, (10, 1, tiny.SIDE, tiny.SIDE)).to(torch.uint8)
    job = replace(job, payload=replace(job.payload, samples={"x": images}))
    x, y = site.own(0)
    per_sample = chosen.precompute(site, job, x[:10], y[:10], torch.arange(10))
    order = [int((images == t).flatten(1).all(1).nonzero()) for t in ((per_sample["transfer"] + 1) * 127.5).round()]
    assert sorted(order) == list(range(10))
    assert set(tiny.fit(chosen, job, site).numbers) == {"distil", "own"}


def test_data_that_are_not_symmetric_cannot_be_generated():
    chosen = client()
    site = site_of(chosen)
    site = replace(site, train=replace(site.train, offset=(-0.4,)))
    with pytest.raises(AssertionError, match=r"data\.scaling=symmetric"):
        tiny.fit(chosen, first(told={}), site)


def test_statistics_are_restored_to_those_of_its_own_data():
    problem = tiny.problem(tiny.normed, proxy=PUBLIC)
    outcome = {}
    for restore in (True, False):
        chosen = client(restore_statistics=restore)
        site = site_of(chosen, problem)
        state = tiny.fit(chosen, first(problem), site).state
        outcome[restore] = tiny.fit(chosen, second(state, problem=problem), site).state.kept
    student = problem.initial().load(outcome[True])
    variance, mean = torch.var_mean(student[0][0](site.own(0)[0]), [0, 2, 3])
    assert_close(outcome[True]["conv.1.running_mean"], mean.detach())
    assert_close(outcome[True]["conv.1.running_var"], variance.detach())
    with pytest.raises(AssertionError):
        assert_close(outcome[False]["conv.1.running_mean"], mean.detach())
    assert_close(outcome[False]["head.weight"], outcome[True]["head.weight"])


def test_restoring_over_several_batches_is_their_mean_by_size(monkeypatch):
    student = tiny.problem(tiny.normed).initial()
    x = tiny.samples(50).take(torch.arange(50))[0]
    monkeypatch.setattr("clients.fedfuse.EVALUATION_BATCH", 40)
    restore_statistics(student, x)
    inner = student[0][0](x)
    parts = [inner[:40].mean([0, 2, 3]), inner[40:].mean([0, 2, 3])]
    assert_close(student.statistics["conv.1.running_mean"], (0.8 * parts[0] + 0.2 * parts[1]).detach())
    assert student[0][1].momentum == 0.1
    assert not student.training


def test_students_without_batchnorm_are_left_alone():
    student = PROBLEM.initial()
    before = tiny.canonical(dict(student.weights))
    restore_statistics(student, tiny.samples(8).take(torch.arange(8))[0])
    tiny.assert_same(tiny.canonical(dict(student.weights)), before)


def test_both_exchanges_are_the_same_for_a_client_that_was_asked_before_and_after(trained):
    chosen, site, state = trained
    one = tiny.lasting(tiny.fit(chosen, second(state), site))
    tiny.fit(chosen, replace(first(), client=1), site)
    tiny.assert_same(tiny.lasting(tiny.fit(chosen, second(state), site)), one)
