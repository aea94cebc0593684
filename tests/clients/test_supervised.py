"""Supervised training: cross entropy and nothing else."""

import tiny
import torch
from torch.nn import functional
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd.participation import Batch


def test_the_only_term_is_the_cross_entropy_of_the_batch(problem, site, job):
    student = problem.initial()
    x, y = site.train.take(torch.arange(5))
    terms = dict(Supervised().terms(student, Batch(x, y, 0, 4), job))
    assert_close(terms, {"ce": functional.cross_entropy(student(x), y)})


def test_it_sends_the_weights_and_no_more(site, job):
    found = tiny.fit(Supervised(), job, site)
    assert found.payload.kinds() == Supervised.sends == {"weights"}
    assert found.state.memory == {}


def test_training_lowers_the_loss(site, job):
    losses, state = [], job.state
    for number in range(1, 11):
        found = tiny.fit(Supervised(), tiny.replace(job, round=number, state=state), site)
        job, state = tiny.replace(job, payload=found.payload), found.state
        losses.append(found.numbers["ce"])
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
