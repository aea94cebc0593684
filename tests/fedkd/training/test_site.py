"""Local training and evaluation: what is learned and what is left behind. Batches have a file of their own."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd.client import Client
from fedkd.engine import ClientState, Failure, Job, Reply
from fedkd.payload import Payload
from fedkd.student import Student
from fedkd.training import evaluation, forward, sample_order


# Fitting
def test_training_is_the_plain_loop_of_torch(site, job):
    """The same batches through torch's own optimiser give the same student."""
    problem = site.problem
    found = tiny.fit(site.client, job, site)
    student = problem.initial()
    optimiser = torch.optim.SGD(student.parameters(), lr=problem.train.lr)
    for batch in sample_order.draw_batches(problem.seed, problem.train, job, 20)[0]:
        x, y = site.train.take(site.train_index[0][batch])
        optimiser.zero_grad()
        nn.functional.cross_entropy(student(x), y).backward()
        optimiser.step()
    assert_close(dict(found.payload.weights), dict(student.weights), rtol=1e-6, atol=1e-7)


def test_momentum_and_weight_decay_reach_the_optimiser(job):
    one = tiny.problem(train=replace(tiny.TRAIN, momentum=0.9))
    other = tiny.problem(train=replace(tiny.TRAIN, weight_decay=0.1))
    plain = tiny.problem()
    found = [tiny.lasting(tiny.fit(Supervised(), job, tiny.site(Supervised(), p))) for p in (one, other, plain)]
    assert found[0] != found[1] != found[2] != found[0]


def test_the_same_job_gives_the_same_reply_to_the_last_bit(site, job):
    first = tiny.lasting(tiny.fit(site.client, job, site))
    tiny.fit(site.client, replace(job, client=2), site)  # the module of the site has served another client since
    tiny.assert_same(tiny.lasting(tiny.fit(site.client, job, site)), first)
    tiny.assert_same(tiny.lasting(tiny.fit(Supervised(), job, tiny.site(Supervised(), site.problem))), first)


def test_an_evaluation_in_between_changes_no_bit_of_the_training():
    """It leaves the module of the site in eval mode, where BatchNorm would learn nothing."""
    problem = tiny.problem(tiny.normed)
    site = tiny.site(Supervised(), problem)
    first = tiny.lasting(tiny.fit(site.client, tiny.job(problem), site))
    site.run(tiny.job(problem, task="evaluate"))
    tiny.assert_same(tiny.lasting(tiny.fit(site.client, tiny.job(problem), site)), first)


def test_training_changes_neither_payload_nor_state_nor_data(job):
    problem = tiny.problem(tiny.normed, statistics="local")
    site = tiny.site(Supervised(), problem)
    first = tiny.fit(site.client, tiny.job(problem), site)
    job = tiny.job(problem, state=first.state, round=2)
    before = tiny.canonical([job, site.train, site.test, site.train_index])
    tiny.fit(site.client, job, site)
    tiny.assert_same(tiny.canonical([job, site.train, site.test, site.train_index]), before)


def test_a_reply_does_not_change_when_its_site_works_on(site, job):
    first = tiny.fit(site.client, job, site)
    before = tiny.lasting(first)
    tiny.fit(site.client, replace(job, client=1), site)
    tiny.assert_same(tiny.lasting(first), before)


def test_training_reads_and_moves_no_global_generator(site, job):
    state = torch.get_rng_state()
    tiny.fit(site.client, job, site)
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_the_means_of_the_terms_over_the_steps(site, job):
    class Constant(Client):
        def terms(self, student, batch, job):
            yield "ce", student(batch.x).sum() * 0
            yield "step", torch.tensor(float(batch.step))
            if batch.step == 0:
                yield "first", torch.tensor(6.0)

    assert tiny.fit(Constant(), job, site).numbers == {"ce": 0.0, "step": 1.0, "first": 2.0}


def test_the_loss_is_the_sum_of_the_terms(site, job):
    class Halves(Client):
        def terms(self, student, batch, job):
            loss = nn.functional.cross_entropy(student(batch.x), batch.y)
            yield "one", 0.25 * loss
            yield "other", 0.75 * loss

    one, other = tiny.fit(Halves(), job, site).payload.weights, tiny.fit(site.client, job, site).payload.weights
    assert_close(dict(one), dict(other))


def test_labels_drawn_are_those_of_the_batches(site, job):
    """Steps times batch size where the data's size is a multiple of it, less what short batches lack."""
    seen = []

    class Watch(Supervised):
        def report(self, trained, job):
            seen.append(trained.labels_drawn)
            return super().report(trained, job)

    tiny.fit(Watch(), job, site)  # 20 samples: no short batch
    assert int(seen[0].sum()) == 3 * 4
    tiny.fit(Watch(), replace(job, client=2), site)  # 7 samples: 4 + 3 + 4
    assert int(seen[1].sum()) == 11
    assert seen[1].dtype == torch.int64


def test_terms_see_what_draw_drew_from_the_clients_own_stream(site, job):
    class Noisy(Supervised):
        def draw(self, job, y, step, generator):
            return {"noise": torch.rand(len(y), generator=generator)}

        def terms(self, student, batch, job):
            yield from super().terms(student, batch, job)
            assert len(batch.drawn["noise"]) == len(batch.y)
            yield "noise", batch.drawn["noise"].sum()

    def noise(**changes):
        return tiny.fit(Noisy(), replace(job, **changes), site).numbers["noise"]

    assert noise() == noise()
    assert len({noise(), noise(client=1), noise(round=2), noise(exchange=1)}) == 4


def test_drawing_noise_does_not_change_the_batches(site, job):
    class Noisy(Supervised):
        def draw(self, job, y, step, generator):
            return {"noise": torch.rand(100, generator=generator)}

    tiny.assert_same(tiny.lasting(tiny.fit(Noisy(), job, site)), tiny.lasting(tiny.fit(site.client, job, site)))


def test_terms_that_yield_nothing_are_a_failure(site, job):
    class Silent(Client):
        def terms(self, student, batch, job):
            yield from ()

    found = replace(site, client=Silent()).run(job)
    assert isinstance(found, Failure)
    assert found.cause == "raised"
    assert "the client's terms yielded nothing" in found.what


# What stays with a client
def test_a_state_says_where_the_next_participation_begins(site, job):
    state = tiny.fit(site.client, replace(job, round=5), site).state
    assert (state.epoch, state.position, state.last_round) == (0, 12, 5)


def test_what_was_not_received_is_kept_and_loaded_again():
    problem = tiny.problem()
    site = tiny.site(Supervised(), problem)
    head = problem.shared(problem.initial().weights, "head")
    first = tiny.fit(site.client, tiny.job(problem, payload=Payload(weights=head)), site)
    assert set(first.state.kept) == {"hidden.1.weight", "hidden.1.bias"}
    assert set(first.payload.weights) == set(head)
    again = tiny.job(problem, payload=Payload(weights=head), state=first.state)
    student = site.student(again)
    tiny.assert_same_weights(student.weights, {**first.state.kept, **head})


def test_received_weights_win_over_kept_ones():
    problem = tiny.problem()
    site = tiny.site(Supervised(), problem)
    old = {name: value + 1 for name, value in problem.initial().weights.items()}
    job = tiny.job(problem, state=ClientState(kept=old))
    tiny.assert_same_weights(site.student(job), problem.initial())


@pytest.mark.parametrize(("policy", "travels"), [("average", True), ("local", False)])
def test_statistics_travel_or_stay_by_policy(policy, travels):
    problem = tiny.problem(tiny.normed, statistics=policy)
    found = tiny.fit(Supervised(), tiny.job(problem), tiny.site(Supervised(), problem))
    there, kept = found.payload.weights or {}, found.state.kept
    for name in problem.statistic_names:
        assert (name in there) is travels
        assert (name in kept) is not travels
        moved = (there if travels else kept)[name]
        assert not torch.equal(moved, problem.initial().weights[name])


def test_memory_begins_with_the_algorithms_own_and_goes_on(site, job):
    class Counting(Supervised):
        def init(self, problem, stream):
            return {"seen": torch.zeros(problem.classes, dtype=torch.int64)}

        def next_memory(self, trained, job):
            return {"seen": trained.memory["seen"] + trained.labels_drawn}

    first = tiny.fit(Counting(), job, site)
    second = tiny.fit(Counting(), replace(job, round=2, state=first.state), site)
    assert int(first.state.memory["seen"].sum()) == 12
    assert int(second.state.memory["seen"].sum()) == 24


# Small clients
@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_clients_with_fewer_samples_than_a_batch_train(make, size):
    problem = tiny.problem(make)
    found = tiny.fit(Supervised(), tiny.job(problem), tiny.site(Supervised(), problem, sizes=(size,)))
    assert found.num_examples == size
    assert all(torch.isfinite(entry).all() for entry in found.payload.weights.values())


def test_a_client_without_samples_is_a_failure_that_says_so(problem):
    found = tiny.site(Supervised(), problem, sizes=(0, 5)).run(tiny.job(problem))
    assert isinstance(found, Failure)
    assert (found.cause, found.what) == ("no_data", "client 0 has no training samples")
    assert not found.is_rejected


def test_what_a_client_raises_becomes_a_failure_with_its_traceback(site, job):
    class Broken(Supervised):
        def report(self, trained, job):
            raise RuntimeError("the disk burns")

    found = replace(site, client=Broken()).run(replace(job, round=3, exchange=1))
    assert isinstance(found, Failure)
    assert (found.cause, found.what) == ("raised", "RuntimeError: the disk burns")
    assert (found.client, found.round, found.exchange, found.task) == (0, 3, 1, "train")
    assert 'raise RuntimeError("the disk burns")' in found.detail


def test_an_interrupt_passes(site, job):
    class Interrupted(Supervised):
        def report(self, trained, job):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(site, client=Interrupted()).run(job)


# Evaluation
def bright() -> Student:
    """Tells the label from the bright row by hand-made weights: rows 0, 2 and 4 are the logits."""
    pick = nn.Sequential(nn.AvgPool2d((1, tiny.SIDE)), nn.Flatten())
    return Student(OrderedDict(pick=pick, head=nn.Linear(tiny.SIDE, tiny.CLASSES)))


def test_evaluation_counts_what_is_correct_and_sums_the_loss():
    problem = tiny.problem(bright)
    site = tiny.site(Supervised(), problem, tests=(9, 5, 1))
    weight = torch.zeros(tiny.CLASSES, tiny.SIDE)
    weight[range(3), [0, 2, 4]] = 1.0
    right = Payload(weights={"head.weight": weight, "head.bias": torch.zeros(3)})
    even = Payload(weights={"head.weight": torch.zeros(3, 6), "head.bias": torch.tensor([1.0, 0, 0])})
    job = Job(task="evaluate", client=1, round=4, payload=right)
    found = site.run(job)
    assert isinstance(found, Reply)
    assert (found.task, found.client, found.round, found.num_examples) == ("evaluate", 1, 4, 5)
    assert found.numbers["correct"] == 5
    # The label of test sample i is i % 3: client 1 holds samples 9 to 13, of which 9 and 12 are zeros.
    found = site.run(replace(job, payload=even))
    assert found.numbers["correct"] == 2
    y = torch.arange(9, 14) % 3
    expected = nn.functional.cross_entropy(torch.tensor([[1.0, 0, 0]]).expand(5, -1), y, reduction="sum")
    assert found.numbers["loss_sum"] == pytest.approx(float(expected))


def test_evaluation_adds_what_the_client_kept_and_changes_nothing():
    problem = tiny.problem(tiny.normed, statistics="local")
    site = tiny.site(Supervised(), problem)
    state = tiny.fit(site.client, tiny.job(problem), site).state
    job = tiny.job(problem, task="evaluate", state=state)
    before = tiny.canonical(job)
    one, other = site.run(job), site.run(replace(job, state=ClientState()))
    tiny.assert_same(tiny.canonical(job), before)
    tiny.assert_same(tiny.lasting(site.run(job)), tiny.lasting(one))  # running statistics stood still
    assert one.numbers != other.numbers


def test_a_client_without_test_samples_is_a_failure_that_says_so(problem):
    site = tiny.site(Supervised(), problem, tests=(0, 4, 4))
    found = site.run(tiny.job(problem, task="evaluate"))
    assert isinstance(found, Failure)
    assert (found.cause, found.task) == ("no_data", "evaluate")


@given(st.integers(0, 20_000))
def test_parts_of_the_pooled_test_set_are_all_of_it_once(samples):
    parts = [forward.pooled_part(k, samples) for k in range(evaluation.num_pooled_parts(samples))]
    assert all(0 < len(part) <= forward.POOLED_PART for part in parts)
    assert torch.equal(torch.cat([torch.arange(0), *parts]), torch.arange(samples))


def test_pooled_evaluation_covers_all_test_samples(problem):
    site = tiny.site(Supervised(), problem)
    found = site.run(tiny.job(problem, task="evaluate_pooled"))
    assert (found.num_examples, found.task) == (27, "evaluate_pooled")


def test_the_probe_is_what_the_trained_student_says(site, job):
    images = site.test.take(torch.arange(7))[0]
    found = tiny.fit(Supervised(), job, replace(site, probe=images))
    student = site.problem.initial().load(found.payload.weights).eval()
    assert torch.equal(found.probe, student(images).argmax(1).to(torch.uint8))


def test_measuring_the_probe_changes_nothing_else():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(Supervised(), problem)
    with_probe = tiny.fit(Supervised(), tiny.job(problem), replace(site, probe=site.test.take(torch.arange(7))[0]))
    tiny.assert_same(
        tiny.lasting(replace(with_probe, probe=None)), tiny.lasting(tiny.fit(site.client, tiny.job(problem), site))
    )
