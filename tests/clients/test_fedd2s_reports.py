"""What FedD2S's clients report and are taught: invariants, and other readings."""

from dataclasses import replace

import pytest
import tiny
import torch
from taps import SIZE, fedd2s, first_batch, gradients, job, replace_generator, site, table, task, with_head
from torch.testing import assert_close

from fedkd.distillation import heads
from fedkd.maths import losses

# A teacher's row belongs to its sample


def agreement(at, logits):
    """The divergence if the student says of each sample what the table says of it."""
    told = job(3, samples=logits)
    drawn = at.draw(told)
    per_sample = at.client.precompute(at, told, drawn.x, drawn.y, drawn.position)
    said = 10 * torch.eye(tiny.CLASSES)[drawn.y]
    return losses.softened_kl(per_sample["teacher"], said, 3.0).item()


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


# Reports


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
    told = fedd2s()._instructions(student, job(1))
    one, other = (fedd2s()._samples(at, student, job(1), told) for _ in range(2))
    tiny.assert_same(tiny.canonical(one), tiny.canonical(other))
    tiny.assert_same(tiny.canonical(dict(student.weights)), before)


def test_taps_can_be_averaged_before_they_go():
    reply = tiny.fit(fedd2s(tap_pool=1, head_arch="flat"), job(1), site())
    assert reply.payload.samples["taps"].shape == (SIZE, 2, 1, 1)
    assert reply.state.memory["heads"]["conv"]["head.weight"].shape == (tiny.CLASSES, 2)


# Class means


def test_class_means_are_reported_with_their_counts():
    at = site()
    means = tiny.fit(fedd2s(knowledge="per_class"), job(2), at).payload.samples
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
    at, means_only = tiny.site(fedd2s(), problem, sizes=(3, 3, 3)), fedd2s(knowledge="per_class")
    beside = replace(at, client=means_only)
    _, y = at.own(0)
    order = y.argsort()
    by_sample, by_class = table(3), table(3)[y]
    for depth in (1, 2, 3):
        told = with_head(at, job(depth, samples=by_class)) if depth < 3 else job(depth, samples=by_class)
        other = replace(told, payload=job(depth, samples=by_sample).payload)
        assert set(y.tolist()) == {0, 1, 2}
        module = at.problem.initial()
        one, first = gradients(fedd2s(), at, told, module, first_batch(at, told, 3))
        two, second = gradients(means_only, beside, other, module, first_batch(beside, other, 3))
        assert_close(one, two)
        for name in first:
            assert_close(first[name], second[name])
    rows = tiny.fit(fedd2s(), job(3), at).payload.samples
    means = tiny.fit(means_only, job(3), at).payload.samples
    assert_close(means["taps"], rows["taps"][order])


def test_smoothed_labels_stand_in_for_a_teacher():
    at, told, smoothing = site(), job(1), fedd2s(knowledge="smoothing", epsilon=0.3)
    per_sample = smoothing.precompute(at, told, *at.own(0), torch.arange(SIZE))
    probs = per_sample["teacher"].softmax(1)
    assert_close(probs.gather(1, at.own(0)[1][:, None]).flatten(), torch.full((SIZE,), 0.8))
    reply = tiny.fit(smoothing, told, at)
    assert set(reply.numbers) == {"ce", "head", "kl"}
    assert reply.payload.samples == {}


# Other readings


def test_the_servers_head_is_used_as_it_came():
    at = site()
    (entries,) = with_head(at, job(1)).state.memory["heads"].values()
    told, down = job(1, samples=table()), fedd2s(student="global_head")
    told = replace(told, payload=replace_generator(told.payload, entries))
    before = tiny.canonical(told)
    reply = tiny.fit(down, told, at)
    tiny.assert_same(tiny.canonical(told), before)
    assert set(reply.numbers) == {"ce", "head", "kl"}
    assert "heads" not in reply.state.memory
    assert set(tiny.fit(down, job(1), at).numbers) == {"ce"}


def test_a_still_exchange_reports_and_changes_nothing():
    steps = fedd2s(exchange="two_step")
    reply = tiny.fit(steps, job(2), site())
    tiny.assert_same_weights(reply.state.kept, task().initial().weights)
    assert reply.state.memory == {}, "a head that nobody trained must not speak"
    assert len(reply.payload.samples["labels"]) == SIZE
    silent = tiny.fit(steps, job(2, exchange=1, samples=table(), state=reply.state), site())
    assert silent.payload.samples == {}
    assert set(silent.numbers) == {"ce", "head", "kl"}


def test_the_same_job_gives_the_same_bytes():
    told = job(1, samples=table())
    one, other = (tiny.lasting(tiny.fit(fedd2s(), told, site())) for _ in range(2))
    tiny.assert_same(one, other)
