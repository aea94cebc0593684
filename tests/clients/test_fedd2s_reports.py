"""What FedD2S's clients report and are taught: invariants, and other readings."""

from dataclasses import replace

import pytest
import tiny
import torch
from taps import SIZE, STREAM, fedd2s, first_batch, gradients, job, replace_generator, site, table, task, with_head
from torch.testing import assert_close

from clients.fedd2s import reported
from fedkd import heads, losses, orders
from fedkd.orders import Order
from fedkd.training import Site

# A teacher's row belongs to its sample


def agreement(at, logits):
    """The divergence if the student says of each sample what the table says of it."""
    told = job(3, samples=logits)
    drawn = at.draw(told)
    known = at.client.consult(at, told, drawn.x, drawn.y, drawn.position)
    said = 10 * torch.eye(tiny.CLASSES)[drawn.y]
    return losses.softened_kl(known["teacher"], said, 3.0).item()


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
    one, other = (fedd2s()._samples(at, student, job(1), Order(depth=1)) for _ in range(2))
    tiny.assert_same(tiny.canonical(one), tiny.canonical(other))
    tiny.assert_same(tiny.canonical(dict(student.weights)), before)


def test_fewer_rows_are_the_same_rows_in_every_round():
    at, order = site(), Order(depth=1, max_samples=5)
    rows = reported(at, job(1), order)
    assert len(rows) == 5 == len(rows.unique())
    assert torch.equal(rows, reported(at, job(1, number=9), order))
    reply = tiny.fit(fedd2s(), job(1, max_samples=5, samples=table(5)), at)
    assert reply.payload.samples["labels"].tolist() == at.own(0)[1][rows].tolist()
    known = fedd2s().consult(at, job(1, max_samples=5, samples=table(5)), *at.own(0), torch.arange(SIZE))
    assert known["taught"].nonzero().flatten().tolist() == rows.tolist()
    assert torch.equal(known["teacher"][rows], table(5))


def test_the_untaught_part_of_a_batch_counts_as_zero():
    at, told = site(), job(3, samples=table())
    batch, module = first_batch(at, told), at.problem.initial()
    half = replace(batch, known={**batch.known, "taught": torch.arange(8) < 4})
    v = module(batch.x).detach()
    expected = losses.softened_kl(batch.known["teacher"][:4], v[:4], 3.0) / 2
    assert_close(dict(fedd2s().terms(module, half, told))["kl"].detach(), expected)
    none = replace(batch, known={**batch.known, "taught": torch.zeros(8, dtype=torch.bool)})
    assert set(dict(fedd2s().terms(module, none, told))) == {"ce"}


def test_taps_can_be_averaged_before_they_go():
    reply = tiny.fit(fedd2s(), job(1, pool=1, head=heads.KINDS.index("flat")), site())
    assert reply.payload.samples["taps"].shape == (SIZE, 2, 1, 1)
    assert reply.state.memory["heads"]["conv"]["head.weight"].shape == (tiny.CLASSES, 2)


# Class means


def test_class_means_are_reported_with_their_counts():
    at = site()
    means = tiny.fit(fedd2s(), job(2, per_class=1), at).payload.samples
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
    at = tiny.site(fedd2s(), problem, sizes=(3, 3, 3))
    _, y = at.own(0)
    order = y.argsort()
    by_sample, by_class = table(3), table(3)[y]
    for depth in (1, 2, 3):
        told = with_head(at, job(depth, samples=by_class)) if depth < 3 else job(depth, samples=by_class)
        other = replace(told, payload=job(depth, samples=by_sample, per_class=1).payload)
        assert set(y.tolist()) == {0, 1, 2}
        module = at.problem.initial()
        one, first = gradients(fedd2s(), at, told, module, first_batch(at, told, 3))
        two, second = gradients(fedd2s(), at, other, module, first_batch(at, other, 3))
        assert_close(one, two)
        for name in first:
            assert_close(first[name], second[name])
    rows = tiny.fit(fedd2s(), job(3), at).payload.samples
    means = tiny.fit(fedd2s(), job(3, per_class=1), at).payload.samples
    assert_close(means["taps"], rows["taps"][order])


def test_a_class_table_teaches_the_classes_that_it_has():
    given_table = {"logits": table(2), "labels": torch.tensor([0, 2], dtype=torch.uint8)}
    at = site()
    known = fedd2s().consult(at, job(1, samples=given_table), *at.own(0), torch.arange(SIZE))
    y = at.own(0)[1]
    assert torch.equal(known["taught"], y != 1)
    assert torch.equal(known["teacher"][y == 2], table(2)[1].expand(int((y == 2).sum()), -1))


def test_smoothed_labels_stand_in_for_a_teacher():
    at = site()
    told = job(1, smoothing=0.3)
    known = fedd2s().consult(at, told, *at.own(0), torch.arange(SIZE))
    probs = known["teacher"].softmax(1)
    assert_close(probs.gather(1, at.own(0)[1][:, None]).flatten(), torch.full((SIZE,), 0.8))
    reply = tiny.fit(fedd2s(), told, at)
    assert set(reply.numbers) == {"ce", "head", "kl"}
    assert reply.payload.samples == {}


# Copies


@pytest.mark.parametrize("depth", [1, 2])
def test_a_copied_head_says_at_first_what_the_student_says(depth):
    quiet = fedd2s(lambda_c=0.0, mu=0.0)  # nothing trains the head
    problem = task(make=tiny.normed)
    at = site(quiet, problem)
    state = tiny.fit(quiet, job(3), at).state
    before = problem.initial().load(state.kept).eval()
    after = tiny.fit(quiet, job(depth, is_copy=1, state=state, number=2), at).state
    entries = after.memory["heads"][heads.tap(before, depth)]
    x = torch.randn(50, 1, tiny.SIDE, tiny.SIDE, generator=STREAM.torch())
    with torch.no_grad():
        u, found = before.taps(x, [heads.tap(before, depth)])
        (tap,) = found.values()
        v = heads.logits(before, depth, "tail", entries, tap, training=False)
    assert_close(v, u, rtol=0, atol=0)


# Other readings


def test_through_the_student_itself_the_divergence_is_of_the_student():
    at = site(problem=task(make=tiny.normed))
    told = job(1, samples=table(), student=orders.STUDENTS.index("through"))
    module = at.problem.initial()
    terms = dict(fedd2s().terms(module, first_batch(at, told), told))
    assert set(terms) == {"ce", "kl"}
    batch = first_batch(at, told)
    assert_close(terms["kl"].detach(), losses.softened_kl(batch.known["teacher"], module(batch.x).detach(), 3.0))
    assert "heads" not in tiny.fit(fedd2s(), told, at).state.memory


def test_the_servers_head_is_used_as_it_came():
    at = site()
    (entries,) = with_head(at, job(1)).state.memory["heads"].values()
    told = job(1, samples=table(), student=orders.STUDENTS.index("global_head"))
    told = replace(told, payload=replace_generator(told.payload, entries))
    before = tiny.canonical(told)
    reply = tiny.fit(fedd2s(), told, at)
    tiny.assert_same(tiny.canonical(told), before)
    assert set(reply.numbers) == {"ce", "head", "kl"}
    assert "heads" not in reply.state.memory
    without = replace(told, payload=job(1, student=told.payload.numbers["student"].__int__()).payload)
    assert set(tiny.fit(fedd2s(), without, at).numbers) == {"ce"}


def test_a_still_exchange_reports_and_changes_nothing():
    reply = tiny.fit(fedd2s(), job(2, is_still=1), site())
    tiny.assert_same_weights(reply.state.kept, task().initial().weights)
    assert reply.state.memory == {}, "a head that nobody trained must not speak"
    assert len(reply.payload.samples["labels"]) == SIZE
    silent = tiny.fit(fedd2s(), job(2, is_silent=1, exchange=1, samples=table(), state=reply.state), site())
    assert silent.payload.samples == {}
    assert set(silent.numbers) == {"ce", "head", "kl"}


def test_a_tenth_is_held_out_to_judge_and_never_trains(monkeypatch):
    drawn = []
    draw = Site.draw
    monkeypatch.setattr(Site, "draw", lambda self, told: drawn.append((self, draw(self, told))) or drawn[-1][1])
    reply = tiny.fit(fedd2s(), job(1, held_out=1), site())
    ((at, used),) = drawn
    assert len(at.train_index[0]) == 18
    assert len(at.test_index[0]) == 2
    assert set(at.train_index[0].tolist()) | set(at.test_index[0].tolist()) == set(range(SIZE))
    assert len(used.position) == 2 * 18
    assert 0 <= reply.payload.numbers["held_out"] <= 1
    assert len(reply.payload.samples["labels"]) == Order(held_out=1).rows(SIZE) == 18


def test_the_same_job_gives_the_same_bytes():
    told = job(1, samples=table())
    one, other = (tiny.lasting(tiny.fit(fedd2s(), told, site())) for _ in range(2))
    tiny.assert_same(one, other)
