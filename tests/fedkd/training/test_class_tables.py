"""Tables by label: golden numbers, and rows that nobody knows."""

import time
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd import seeds
from fedkd.payload import Payload
from fedkd.training import class_tables

counts_of = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5)


def values(clients: int, columns: int = 2) -> torch.Tensor:
    return torch.randn(clients, 3, columns, generator=seeds.stream(clients, "values").torch())


def test_what_is_left_without_the_first_of_three_clients_and_the_mean_of_all():
    """Golden: rows (2, 0), (0, 4), (4, 2)."""
    rows = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]], [[4.0, 2.0]]])
    ones = torch.ones(3, 1, dtype=torch.int64)
    assert class_tables.without_own(rows, ones)[0][0].tolist() == [[2, 3]]
    assert class_tables.combine(rows, ones)[0].tolist() == [[2, 2]]


def test_prototypes_fused_alike_and_by_number():
    """Golden: (1, 0) of one sample and (3, 2) of three."""
    rows, counts = torch.tensor([[[1.0, 0.0]], [[3.0, 2.0]]]), torch.tensor([[1], [3]])
    assert class_tables.combine(rows, class_tables.weigh(counts, "holders"))[0].tolist() == [[2, 1]]
    assert class_tables.combine(rows, class_tables.weigh(counts, "examples"))[0].tolist() == [[2.5, 1.5]]


def test_senders_without_a_label_pull_its_row_to_zero_only_if_asked_to():
    rows, counts = torch.tensor([[[4.0]], [[0.0]]]), torch.tensor([[7], [0]])
    assert class_tables.combine(rows, class_tables.weigh(counts, "holders"))[0].tolist() == [[4]]
    assert class_tables.combine(rows, class_tables.weigh(counts, "senders"))[0].tolist() == [[2]]


@given(counts_of, st.sampled_from(["holders", "examples", "senders"]))
def test_a_row_is_unknown_exactly_if_nobody_holds_its_label(counts, mean):
    counts_KC = torch.tensor(counts)
    table, weight = class_tables.combine(values(len(counts)), class_tables.weigh(counts_KC, mean))
    held = counts_KC.sum(0) > 0
    assert torch.equal(weight > 0, held)
    assert not table[~held].any()


@given(counts_of, st.sampled_from(["holders", "examples"]))
def test_each_is_told_the_mean_of_all_others(counts, mean):
    weights, its = class_tables.weigh(torch.tensor(counts), mean), values(len(counts))
    others, totals = class_tables.without_own(its, weights)
    for k in range(len(counts)):
        rest = [j for j in range(len(counts)) if j != k]
        expected, weight = class_tables.combine(its[rest], weights[rest])
        assert_close(others[k], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(totals[k], weight)


@given(counts_of)
def test_who_holds_no_row_of_a_label_does_not_change_it(counts):
    counts_KC, its = torch.tensor(counts), values(len(counts))
    spoilt = torch.where(counts_KC[..., None] > 0, its, 1e6)
    for mean in ("holders", "examples"):
        weights = class_tables.weigh(counts_KC, mean)
        assert_close(class_tables.combine(spoilt, weights)[0], class_tables.combine(its, weights)[0])


def test_sums_and_means_by_label():
    said, y = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]), torch.tensor([2, 0, 2])
    sums, counts = class_tables.sums(said, y, 3)
    assert counts.tolist() == [1, 0, 2]
    assert class_tables.means(sums, counts).tolist() == [[3, 4], [0, 0], [3, 4.5]]
    assert class_tables.means(sums, counts, 1.0).tolist() == [[1.5, 2], [0, 0], [2, 3]]


def test_a_constant_output_counted_from_one_is_shrunk():
    """docs/strategies/feddistill.md, equation 1: v n / (n + 1)."""
    sums, counts = class_tables.sums(torch.full((4, 2), 10.0), torch.zeros(4, dtype=torch.int64), 1)
    assert class_tables.means(sums, counts, 1.0).tolist() == [[8, 8]]


def payload(table: torch.Tensor, weights: torch.Tensor) -> Payload:
    return Payload(class_logits=table, label_counts=weights)


def told(leave_one_out: bool) -> dict[int, Payload]:
    rows = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]], [[4.0, 2.0]]])
    its = class_tables.Tables(torch.tensor([1, 4, 6]), rows, torch.ones(3, 1, dtype=torch.int64))
    return dict(class_tables.payloads(its, (0, 1, 2), leave_one_out, payload))


def test_only_who_sent_a_table_is_told_a_mean_of_its_own():
    found = told(leave_one_out=True)
    assert found[1].class_logits.tolist() == [[2, 3]]
    assert found[0].class_logits.tolist() == [[2, 2]]
    assert found[0] is found[2]


def test_without_leaving_out_all_are_told_the_same():
    found = told(leave_one_out=False)
    assert found[0] is found[1] is found[2]


def test_a_hundred_clients_with_a_hundred_classes_are_fused_in_a_moment():
    its = torch.randn(100, 100, 100, generator=seeds.stream(0, "many").torch())
    weights = torch.ones(100, 100, dtype=torch.int64)
    class_tables.without_own(its, weights)
    start = time.process_time()
    class_tables.combine(its, weights)
    class_tables.without_own(its, weights)
    assert time.process_time() - start < 0.2


def test_the_ear_hears_the_first_pass_of_each_step_and_is_taken_away(problem, site, job):
    student, drawn = problem.initial(), site.draw(job)
    with class_tables.recording(student) as outputs:
        for batch in site.batches(site.client, job, drawn):
            outputs.start(batch)
            expected = student(batch.x)
            student(batch.x + 1)
    assert len(outputs.logits()) == len(drawn.y)
    assert torch.equal(outputs.logits()[-4:], expected)
    assert outputs.latents(start=2).shape == (4, tiny.LATENT)
    assert not outputs.logits().requires_grad
    before = len(outputs.passes)
    student(drawn.x)
    assert len(outputs.passes) == before


@pytest.mark.parametrize("seed", [0, 1])
def test_recording_changes_no_byte_of_training(site, job, seed):
    site = replace(site, problem=replace(site.problem, seed=seed))
    drawn = site.draw(job)
    outcome, _ = class_tables.fit_recording(Supervised(), site, job, site.student(job).train(), drawn)
    tiny.assert_same_weights(outcome.payload.weights, tiny.fit(Supervised(), job, site).payload.weights)
