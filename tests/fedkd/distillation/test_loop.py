"""One loop for all generators: what it is given stays, its memory goes on, and steps without a loss change nothing."""

import math

import torch

from fedkd.distillation import loop
from fedkd.distillation.loop import optimise

GIVEN = {"w": torch.tensor([3.0, -2.0]), "norm.running_mean": torch.tensor([1.0])}


def towards_zero(entries):
    yield "square", entries["w"].square().sum()
    yield "twice", 2 * entries["w"].square().sum()


def play(terms=towards_zero, steps=3, generator=GIVEN, memory=None, **changes):
    return optimise(generator, memory or {}, terms, steps=steps, lr=0.1, **changes)


def test_a_copy_is_trained_in_its_learnable_entries():
    found = play()
    assert GIVEN["w"].tolist() == [3.0, -2.0]
    torch.testing.assert_close(found.generator["w"], torch.tensor([2.7, -1.7]), atol=0.01, rtol=0)  # three steps of lr
    assert torch.equal(found.generator["norm.running_mean"], GIVEN["norm.running_mean"])
    assert not found.generator["w"].requires_grad


def test_two_calls_are_one_if_the_memory_goes_along():
    first = play(steps=2)
    second = play(steps=4, generator=first.generator, memory=first.adam)
    assert torch.equal(second.generator["w"], play(steps=6).generator["w"])
    assert second.adam["step"] == 6


def test_the_means_are_of_the_last_steps():
    seen = []

    def counting(entries):
        seen.append(1.0)
        yield "count", len(seen) + 0 * entries["w"].sum()

    assert play(counting, steps=loop.RECENT + 2).means() == {"count": 7.5}  # of 3 to 12


def test_without_terms_nothing_is_trained():
    found = play(lambda entries: iter(()))
    assert torch.equal(found.generator["w"], GIVEN["w"])
    assert found.adam["step"] == 0
    assert found.means() == {}


def test_steps_whose_loss_is_not_finite_can_be_passed_over():
    losses = iter([math.nan, 1.0, math.inf])

    def terms(entries):
        yield "loss", next(losses) * entries["w"].sum()

    found = play(terms, skip_non_finite=True)
    assert found.adam["step"] == len(found.recent) == 1
    assert bool(found.generator["w"].isfinite().all())
