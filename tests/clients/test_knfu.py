from dataclasses import replace

import hypothesis.strategies as st
import pytest
import tiny
import torch
from hypothesis import given
from torch.testing import assert_close

from clients.knfu import KnFu
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.data.samples import Proxy
from fedkd.engine import ClientState, Failure
from fedkd.maths import losses
from fedkd.participation import Batch
from fedkd.payload import Payload
from strategies.knfu import KnFu as Strategy

SIZE = 10
PUBLIC = Proxy("held-out", tiny.samples(SIZE, seed=3), True, 77)
DESCRIBED = {"checksum": 77.0, "samples": float(SIZE)}
KEPT = replace(tiny.TRAIN, optimiser="adam", moments="keep", lr=0.01)


def client(**config):
    return KnFu(KnFu.Config(**config))


def site(its=None, make=tiny.plain, train=tiny.TRAIN, **changes):
    return tiny.site(its or client(), tiny.problem(make, proxy=PUBLIC, train=train, **changes))


def first(site):
    """The job of exchange 0."""
    return tiny.job(site.problem, payload=Payload(numbers=DESCRIBED))


def second(site, logits=None, state=None):
    """The job of exchange 1, after exchange 0 left `state`."""
    payload = Payload(probe_logits=logits, numbers=DESCRIBED)
    state = state or tiny.fit(site.client, first(site), site).state
    return replace(tiny.job(site.problem), exchange=1, payload=payload, state=state)


def teacher(seed=0):
    return torch.randn(SIZE, tiny.CLASSES, generator=seeds.stream(seed, "teacher").torch())


def batch(site, target):
    x, y = PUBLIC.samples.take(torch.arange(len(target)))
    return Batch(x, y, 0, len(target), {}, {"teacher": target, "label": y})


def test_it_trains_on_its_own_data_as_anybody_does():
    its = site()
    known = tiny.fit(client(), first(its), its)
    plain = tiny.fit(Supervised(), replace(first(its), payload=Payload()), its)
    tiny.assert_same_weights(known.state.kept, plain.state.kept)


def test_it_says_what_its_trained_student_thinks_of_the_public_set_in_order():
    its = site(make=tiny.normed)
    reply = tiny.fit(its.client, first(its), its)
    student = its.student(replace(first(its), state=reply.state)).eval()
    with torch.no_grad():
        expected = student(PUBLIC.samples.take(torch.arange(SIZE))[0])
    assert torch.equal(reply.payload.probe_logits, expected)
    assert reply.payload.kinds() == {"probe_logits"}


def test_it_counts_its_labels_only_where_they_are_asked_for():
    its = site(client(epd="reported"))
    reply = tiny.fit(its.client, first(its), its)
    assert torch.equal(reply.payload.label_counts, torch.tensor([7, 7, 6]))


def test_it_says_nothing_in_the_second_exchange():
    its = site()
    assert tiny.fit(its.client, second(its, teacher()), its).payload.kinds() == frozenset()


def test_it_moves_towards_its_teacher():
    few, many = (client(distill_epochs=epochs) for epochs in (1, 50))
    its = site(train=replace(KEPT, lr=0.03))
    state = tiny.fit(its.client, first(its), its).state
    losses_ = [tiny.fit(some, second(its, teacher(), state), its).numbers["distil"] for some in (few, many)]
    assert losses_[1] < 0.75 * losses_[0]


def test_without_a_teacher_or_passes_or_weight_nothing_moves():
    its = site(make=tiny.normed, train=KEPT)
    state = tiny.fit(its.client, first(its), its).state
    for its_client, logits in (
        (client(), None),
        (client(distill_epochs=0), teacher()),
        (client(distill_weight=0), teacher()),
    ):
        reply = tiny.fit(its_client, second(its, logits, state), its)
        assert reply.numbers == {}
        tiny.assert_same(tiny.canonical(reply.state), tiny.canonical(state))
    for changes, logits in (({"distill_weight": 0.5}, None), ({"distill_epochs": 0}, teacher())):
        reply = tiny.fit(client(fine_tune_ce="private", **changes), second(its, logits, state), its)
        tiny.assert_same(tiny.canonical(reply.state), tiny.canonical(state))


def test_no_passes_give_the_bytes_of_local_training_over_several_rounds():
    """Fusion draws from no stream of a client."""
    train = replace(KEPT, steps=None, epochs=1)
    its = site(client(distill_epochs=0), tiny.normed, train)
    played = tiny.play(tiny.experiment(Strategy(), its), tiny.FakeEngine(its), 3)
    for number in its.train_index:
        state = ClientState()
        for round in (1, 2, 3):
            job = tiny.job(its.problem, client=number, round=round, payload=Payload(), state=state)
            state = tiny.fit(Supervised(), job, its).state
        tiny.assert_same_weights(played[-1].state.clients[number].kept, state.kept)
        tiny.assert_same(tiny.canonical(played[-1].state.clients[number].optimiser), tiny.canonical(state.optimiser))


def test_one_optimiser_serves_both_phases():
    its = site(train=KEPT)
    reply = tiny.fit(its.client, first(its), its)
    assert reply.state.optimiser["step"] == 3
    assert tiny.fit(its.client, second(its, teacher(), reply.state), its).state.optimiser["step"] == 3 + 1


def test_fine_tuning_starts_where_training_stopped():
    its = site()
    state = tiny.fit(its.client, first(its), its).state
    assert (state.epoch, state.position) == (0, 12)
    after = tiny.fit(its.client, second(its, teacher(), state), its).state
    assert (after.epoch, after.position) == (0, 12)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_loss_is_zero_only_for_a_student_that_agrees_and_its_gradient_is_the_difference(seed, other):
    logits = teacher(seed).double().requires_grad_()
    target = teacher(other).double().softmax(1)
    loss = losses.kl(target, logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) >= -1e-12
    assert_close(gradient, (logits.detach().softmax(1) - target) / SIZE)
    assert (float(loss.detach()) < 1e-9) == (seed == other)


def test_terms_scale_with_weight_and_temperature():
    its = site()
    student, target = its.problem.initial(), teacher().softmax(1)
    chosen = client(distill_weight=0.5, temperature=2.0)
    ((name, value),) = chosen.terms(student, batch(its, target), second(its, teacher()))
    x = PUBLIC.samples.take(torch.arange(SIZE))[0]
    assert name == "distil"
    assert_close(value, 0.5 * 4 * losses.kl(target, student(x) / 2))


def test_public_labels_teach_only_where_they_are_to():
    its = site()
    student, target = its.problem.initial(), teacher().softmax(1)
    x, y = PUBLIC.samples.take(torch.arange(SIZE))
    chosen = client(fine_tune_ce="transfer")
    terms = dict(chosen.terms(student, batch(its, target), second(its, teacher())))
    assert list(terms) == ["distil", "transfer_ce"]
    assert_close(terms["transfer_ce"], losses.cross_entropy(student(x), y))
    numbers = tiny.fit(client(distill_weight=0, fine_tune_ce="transfer"), second(its, teacher()), its).numbers
    assert list(numbers) == ["transfer_ce"]


def test_private_batches_alternate_with_public_ones():
    its = site(client(distill_weight=0.25, distill_batch=4, fine_tune_ce="private"))
    numbers = tiny.fit(its.client, second(its, teacher()), its).numbers
    assert list(numbers) == ["distil", "private_ce"]
    job = second(its, teacher())
    batches = list(its.client._fine_tuning(its, job, PUBLIC.samples.take(torch.arange(SIZE))[0], its.draw(job)))
    assert ["teacher" in b.per_sample for b in batches] == [True, False] * 3
    terms = dict(its.client.terms(its.problem.initial(), batches[1], job))
    expected = losses.cross_entropy(its.problem.initial()(batches[1].x), batches[1].y)
    assert_close(terms["private_ce"], 0.75 * expected)


def test_a_weight_of_one_or_more_leaves_no_room_for_private_batches():
    its = site(client(distill_weight=1.0, fine_tune_ce="private"))
    assert list(tiny.fit(its.client, second(its, teacher()), its).numbers) == ["distil"]


def test_each_pass_takes_every_public_image_once_in_a_new_order():
    its = site(client(distill_epochs=2, distill_batch=4))
    x = PUBLIC.samples.take(torch.arange(SIZE))[0]
    batches = list(its.client._fine_tuning(its, second(its, teacher()), x, None))
    assert [len(b.x) for b in batches] == [4, 4, 2] * 2
    rows = torch.cat([b.per_sample["teacher"] for b in batches])
    for half in rows.split(SIZE):
        assert_close(half.sort(0).values, teacher().softmax(1).sort(0).values)
    assert not torch.equal(rows[:SIZE], rows[SIZE:])


def test_accuracy_before_fine_tuning_is_noted():
    its = site()
    reply = tiny.fit(its.client, first(its), its)
    student = its.student(replace(first(its), state=reply.state))
    assert reply.numbers["alma_before"] == its.score(its.client, student, first(its))
    assert "common_before" not in reply.numbers
    common = replace(its, common=torch.arange(8))
    assert 0 <= tiny.fit(client(common_before=True), first(its), common).numbers["common_before"] <= 1


def test_a_client_without_test_images_notes_nothing():
    its = replace(site(), test_index=dict.fromkeys(range(3), torch.empty(0, dtype=torch.int64)))
    assert list(tiny.fit(its.client, first(its), its).numbers) == ["ce"]


def test_with_a_teacher_in_the_first_exchange_it_distils_first():
    its = site(train=KEPT)
    state = tiny.fit(its.client, first(its), its).state
    job = replace(second(its, teacher(), state), exchange=0, round=2)
    reply = tiny.fit(its.client, job, its)
    assert list(reply.numbers) == ["ce", "distil", "alma_after"]
    assert reply.payload.kinds() == {"probe_logits"}
    assert reply.state.optimiser["step"] == 3 + 1 + 3


def test_other_images_or_another_order_of_them_fail():
    its = site()
    reply = its.run(replace(first(its), payload=Payload(numbers={**DESCRIBED, "checksum": 78.0})))
    assert isinstance(reply, Failure)
    assert "checksum 78" in reply.what
    nothing = tiny.site(client(), tiny.problem())
    reply = nothing.run(first(nothing))
    assert isinstance(reply, Failure)
    assert "no public set" in reply.what


def test_its_own_knowledge_teaches_it_nothing():
    """K = 1: the loss is 0, and plain SGD stands still."""
    its = site()
    reply = tiny.fit(its.client, first(its), its)
    after = tiny.fit(its.client, second(its, reply.payload.probe_logits, reply.state), its)
    assert after.numbers["distil"] == pytest.approx(0, abs=1e-7)
    assert_close(dict(after.state.kept), dict(reply.state.kept), rtol=0, atol=1e-6)
