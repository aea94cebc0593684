"""Public sets: both ends choose the same part, and notice if they do not have the same set."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd import seeds
from fedkd.data.samples import Proxy
from fedkd.training import public_set


def posed(count: int = 30, is_labelled: bool = True, **changes):
    its = tiny.samples(count, seed=5)
    its = its if is_labelled else replace(its, y=torch.full((count,), -1))
    return tiny.problem(proxy=Proxy("tiny", its, is_labelled, 12345), **changes)


@given(st.integers(1, 30), st.integers(1, 9))
def test_a_part_has_as_many_images_of_each_label_and_none_twice(size, round):
    problem = posed()
    index = public_set.part(problem, size, round)
    assert len(index.unique()) == size
    counts = torch.bincount(problem.proxy.samples.y[index], minlength=3)
    assert int(counts.max() - counts.min()) <= 1


def test_a_rare_label_is_given_whole_and_made_up_for():
    problem = posed()
    y = torch.tensor([0] * 20 + [1] * 9 + [2])
    problem = replace(problem, proxy=replace(problem.proxy, samples=replace(problem.proxy.samples, y=y)))
    counts = torch.bincount(y[public_set.part(problem, 12, 1)])
    assert counts[2] == 1
    assert counts.sum() == 12


def test_rounds_and_seeds_differ_and_the_same_round_repeats():
    problem = posed(is_labelled=False)
    one = public_set.part(problem, 10, 1)
    assert torch.equal(one, public_set.part(problem, 10, 1))
    assert not torch.equal(one, public_set.part(problem, 10, 2))
    assert not torch.equal(one, public_set.part(replace(problem, seed=1), 10, 1))


def test_the_whole_set_is_the_part_of_every_round():
    assert torch.equal(public_set.part(posed(), 30, 3), torch.arange(30))


def test_a_part_has_as_many_images_as_there_are_at_most():
    assert [public_set.size(posed(), most) for most in (None, 40, 30, 7)] == [30, 30, 30, 7]


def test_images_and_labels_are_those_of_the_set_in_its_order_or_as_asked_for():
    problem, index = posed(), torch.tensor([7, 2])
    samples = problem.proxy.samples
    assert torch.equal(public_set.images(problem), samples.take(torch.arange(30))[0])
    assert torch.equal(public_set.images(problem, index), samples.take(index)[0])
    assert torch.equal(public_set.labels(problem), samples.y)
    assert torch.equal(public_set.labels(problem, index), samples.y[[7, 2]])


def test_what_is_not_labelled_has_no_labels():
    assert public_set.labels(posed(is_labelled=False)) is None
    assert public_set.labels(posed(is_labelled=False), torch.tensor([1])) is None


def test_a_client_looks_at_the_images_that_the_server_means():
    problem = posed()
    x = public_set.agreed_images(problem, public_set.describe(problem, 10), 2)
    assert torch.equal(x, problem.proxy.samples.take(public_set.part(problem, 10, 2))[0])


@pytest.mark.parametrize("numbers", [None, {}, {"checksum": 1.0, "samples": 10.0}])
def test_another_set_is_noticed(numbers):
    with pytest.raises(ValueError, match="checksum"):
        public_set.agreed_images(posed(), numbers, 1)


def test_there_must_be_a_set():
    with pytest.raises(ValueError, match="no public set"):
        public_set.required(tiny.problem())


def test_passes_show_every_image_once_an_epoch_with_what_is_known_of_it():
    x = torch.arange(10.0).view(10, 1, 1, 1)
    found = list(public_set.batches(x, {"target": torch.arange(10)}, 4, seeds.stream(0, "p"), epochs=2))
    assert [len(batch.x) for batch in found] == [4, 4, 2, 4, 4, 2]
    assert [batch.step for batch in found] == list(range(6))
    for epoch in (found[:3], found[3:]):
        assert sorted(torch.cat([batch.per_sample["target"] for batch in epoch]).tolist()) == list(range(10))
    assert all(torch.equal(batch.x.flatten(), batch.per_sample["target"].float()) for batch in found)
    assert {int(label) for batch in found for label in batch.y} == {-1}


def test_steps_may_end_in_the_middle_of_a_pass_and_none_are_none():
    x = torch.zeros(10, 1, 1, 1)
    assert len(list(public_set.batches(x, {}, 4, seeds.stream(0, "p"), steps=5))) == 5
    assert not list(public_set.batches(x, {}, 4, seeds.stream(0, "p"), steps=0))
