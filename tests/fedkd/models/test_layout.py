"""Layout in memory: it changes speed, and nothing that leaves a student."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd import seeds, student
from fedkd.config import TrainConfig
from fedkd.models import students
from fedkd.problem import Problem
from fedkd.training.optimisers import Adaptive

LAST = [name for name, known in students._ARCHITECTURES.items() if known.layout == torch.channels_last]


def build(name):
    return student.build(lambda: students.make(name, (1, 8, 8), 10), seeds.stream(0, "init"))


@pytest.mark.parametrize("name", LAST)
def test_a_student_laid_out_channels_last_says_the_same(name):
    last, first = build(name), build(name)
    for parameter in first.parameters():
        parameter.data = parameter.data.contiguous()
    assert any(not p.is_contiguous() for p in last.parameters())
    x = torch.rand(5, 1, 8, 8, generator=seeds.stream(0, "x").torch())
    assert_close(last(x), first(x))
    tiny.assert_same_weights(last.weights, first.weights)


@pytest.mark.parametrize("name", LAST)
def test_what_leaves_it_is_contiguous(name):
    made = build(name)
    assert all(entry.is_contiguous() for entry in made.weights.values())
    adam = Adaptive(made.learnable)
    adam.step(torch.autograd.grad(made(torch.rand(4, 1, 8, 8)).sum(), list(made.parameters())), 0.1)
    kept = adam.memory()
    assert all(moment.is_contiguous() for name in ("mean", "square") for moment in kept[name].values())


def test_a_site_gives_back_contiguous_entries():
    def make():
        return students.make("lenet5", (1, tiny.SIDE, tiny.SIDE), tiny.CLASSES)

    problem: Problem = tiny.problem(make, train=TrainConfig(batch=4, steps=2, optimiser="adam", moments="keep"))
    site = tiny.site(Supervised(), problem)
    reply = tiny.fit(site.client, tiny.job(problem), site)
    tensors = [*reply.payload.weights.values(), *reply.state.optimiser["mean"].values()]
    assert all(tensor.is_contiguous() for tensor in tensors)
    again = tiny.fit(site.client, tiny.job(problem, round=2, state=reply.state), site)
    assert again.state.last_round == 2
