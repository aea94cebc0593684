"""FedDistill's client half: invariants (docs/strategies/feddistill.md, equations 1 and 3)."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.feddistill import FedDistill
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.maths import divergences, losses
from fedkd.participation import Batch
from fedkd.payload import Payload

KNOWN = torch.tensor([1, 1, 1])
TABLE = torch.tensor([[2.0, 0.0, -1.0], [0.0, 4.0, 0.0], [-3.0, 1.0, 2.0]])


def client(**changes) -> FedDistill:
    return FedDistill(FedDistill.Config(**changes))


def told(job, table=TABLE, counts=KNOWN, last_round=1, weights=True):
    payload = Payload(weights=job.payload.weights if weights else None, class_logits=table, label_counts=counts)
    return replace(job, payload=payload, state=replace(job.state, last_round=last_round), round=2)


def terms(problem, site, job, **changes):
    x, y = site.train.take(torch.arange(4))
    student = problem.initial()
    found = dict(client(**changes).terms(student, Batch(x, y, 0, 4), job))
    return {name: float(value.detach()) for name, value in found.items()}, student(x).detach(), y


def test_zero_gamma_trains_as_fedavg_does(site, job):
    mine, its = tiny.fit(client(gamma=0.0), told(job), site), tiny.fit(Supervised(), told(job), site)
    tiny.assert_same_weights(mine, its)
    assert mine.numbers == its.numbers


def test_without_a_table_there_is_no_term(problem, site, job):
    assert set(terms(problem, site, job)[0]) == {"ce"}


def test_the_first_participation_has_no_term_unless_asked_to(problem, site, job):
    assert set(terms(problem, site, told(job, last_round=0))[0]) == {"ce"}
    assert set(terms(problem, site, told(job, last_round=0), skip_first=False)[0]) == {"ce", "distil"}


def test_a_label_that_nobody_knows_has_no_term_and_its_row_does_not_matter(problem, site, job):
    nobody = told(job, counts=torch.zeros(3, dtype=torch.int64))
    assert set(terms(problem, site, nobody)[0]) == {"ce"}
    some = torch.tensor([1, 0, 1])
    other = TABLE.clone()
    other[1] = 99.0
    one, two = (terms(problem, site, told(job, table, some))[0] for table in (TABLE, other))
    assert one == two


def test_unknown_rows_leave_the_weight_of_the_others_alone(problem, site, job):
    found, logits, y = terms(problem, site, told(job, counts=torch.tensor([1, 0, 1])))
    rows = y != 1
    expected = losses.kl(TABLE[y[rows]].softmax(1), logits[rows]) * rows.sum() / len(y)
    assert found["distil"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("table", ["logit", "prob"])
@pytest.mark.parametrize("loss", ["ce", "kl", "mse"])
def test_the_term_is_the_distance_to_the_row_of_the_label(problem, site, job, loss, table):
    rows = TABLE.softmax(1) if table == "prob" else TABLE
    found, logits, y = terms(problem, site, told(job, rows), loss=loss, table=table, gamma=0.5)
    target = TABLE[y].softmax(1)
    expected = {
        "ce": losses.cross_entropy(logits, target),
        "kl": losses.kl(target, logits),
        "mse": divergences.mse(rows[y], logits.softmax(1) if table == "prob" else logits),
    }[loss]
    assert found["distil"] == pytest.approx(0.5 * float(expected), rel=1e-5)


def test_raw_logits_are_never_the_target_of_a_cross_entropy():
    """The trap of raw logits as a target: "CE" of raw logits is 6.253856, or -50; ours are bounded below by 0."""
    u, t = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 3.0]])
    assert float(client(loss="kl")._distance(t, u)) == pytest.approx(2.000861, abs=1e-6)
    wild, target = torch.tensor([[0.0, 50.0]]), torch.tensor([[-1.0, -3.0]])
    for loss in ("ce", "kl"):
        assert float(client(loss=loss)._distance(target, wild)) > 0


def test_kl_is_the_mean_over_the_batch():
    """Golden: 0.315196; the mean over elements would be a third of it."""
    t, u = torch.tensor([[1.0, 2, 3], [0, 0, 1]]), torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    assert float(client()._distance(t, u)) == pytest.approx(0.315196, abs=1e-6)


def test_rows_of_probabilities_that_were_counted_from_one_are_made_whole():
    u, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.2]])
    found = client(table="prob")._distance(p, u)
    assert_close(found, losses.kl(torch.tensor([[0.75, 0.25]]), u))


def constant(problem, bias):
    """A student that says the same of everything, and goes on to: nothing reaches its weights at this rate."""
    weights = problem.initial().weights
    return {**weights, "head.weight": torch.zeros_like(weights["head.weight"]), "head.bias": torch.tensor(bias)}


@pytest.mark.parametrize(("first_count", "accumulate"), [(0.0, "round"), (1.0, "running")])
def test_a_constant_student_fills_the_rows_of_the_labels_it_drew(first_count, accumulate):
    problem = tiny.problem(train=replace(tiny.TRAIN, lr=1e-12))
    site = tiny.site(Supervised(), problem)
    bias = [1.0, -2.0, 0.5]
    job = tiny.job(problem, payload=Payload(weights=constant(problem, bias)))
    found = tiny.fit(client(first_count=first_count, accumulate=accumulate), job, site).payload
    n = found.label_counts[:, None]
    assert int(n.sum()) == 12
    assert_close(found.class_logits, torch.tensor(bias) * n / (n + first_count))


def test_a_label_never_drawn_has_count_zero_and_a_row_of_zeros(problem, job):
    site = tiny.site(Supervised(), problem, sizes=(20, 12, 7))
    index = torch.arange(20)[site.train.y[:20] != 2]
    found = tiny.fit(client(), job, replace(site, train_index={0: index, 1: index, 2: index})).payload
    assert found.label_counts[2] == 0
    assert not found.class_logits[2].any()


def test_counts_run_on_or_start_again(site, job):
    for accumulate, expected in (("running", 24), ("round", 12)):
        first = tiny.fit(client(accumulate=accumulate), job, site)
        second = tiny.fit(client(accumulate=accumulate), replace(job, round=2, state=first.state), site)
        assert int(first.payload.label_counts.sum()) == 12
        assert int(second.payload.label_counts.sum()) == expected


def test_probabilities_are_recorded_if_the_table_is_of_these(site, job):
    found = tiny.fit(client(table="prob", first_count=0.0), job, site).payload
    assert_close(found.class_logits.sum(1), torch.ones(3))


def test_outputs_are_recorded_as_they_occur_in_train_mode():
    problem = tiny.problem(tiny.normed, train=replace(tiny.TRAIN, steps=1))
    site = tiny.site(Supervised(), problem)
    job = tiny.job(problem)
    found = tiny.fit(client(first_count=0.0), job, site).payload
    drawn = site.draw(job)
    said = problem.initial().train()(drawn.x).detach()
    for label in drawn.y.unique().tolist():
        assert_close(found.class_logits[label], said[drawn.y == label].mean(0))


def test_without_weights_the_student_stays_with_the_client(site, job):
    alone = replace(job, payload=Payload())
    found = tiny.fit(client(), alone, site)
    assert found.payload.kinds() == {"class_logits", "label_counts"}
    assert set(found.state.kept) == set(job.payload.weights)
    again = tiny.fit(client(), replace(alone, state=found.state, round=2), site)
    assert not torch.equal(again.state.kept["head.bias"], found.state.kept["head.bias"])


def test_nothing_that_is_sent_or_kept_carries_a_graph(site, job):
    found = tiny.fit(client(), told(job), site)
    assert not found.payload.class_logits.requires_grad
    assert not any(value.requires_grad for value in found.state.memory.values())
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_a_fresh_memory_is_empty_of_knowledge(problem):
    memory = client().init(problem, None)
    assert not memory["sums"].any()
    assert client(accumulate="round").init(problem, None) == {}
    assert ClientState(memory=memory).memory["counts"].dtype == torch.int64


def test_what_else_is_remembered_stays(site, job):
    """Parts keep theirs in the same memory."""

    class Remembering(FedDistill):
        def next_memory(self, trained, job):
            return {**trained.memory, "other": 1}

    for accumulate in ("round", "running"):
        found = tiny.fit(Remembering(FedDistill.Config(accumulate=accumulate)), job, site)
        assert found.state.memory["other"] == 1
