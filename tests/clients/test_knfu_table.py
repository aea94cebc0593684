from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.knfu_table import KnFuTable
from clients.supervised import Supervised
from fedkd.maths import losses
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.training import class_tables, forward

TABLE = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 0]])
OWNERS = torch.tensor([2, 1, 0])


def client(**config):
    return KnFuTable(KnFuTable.Config(**config))


def taught(site):
    return tiny.job(site.problem, payload=Payload(class_logits=TABLE, label_counts=OWNERS))


def terms(its, **config):
    x, y = its.train.take(torch.arange(6))
    student = its.problem.initial()
    return student(x), y, dict(client(**config).terms(student, Batch(x, y, 0, 6), taught(its)))


def test_it_sends_its_mean_logits_by_label_and_how_many_it_has_of_each():
    its = tiny.site(client(), tiny.problem(tiny.normed))
    reply = tiny.fit(its.client, tiny.job(its.problem, payload=Payload()), its)
    student = its.student(replace(tiny.job(its.problem, payload=Payload()), state=reply.state))
    x, y = its.own(0)
    logits = forward.logits(student, x)
    for label in range(tiny.CLASSES):
        assert_close(reply.payload.class_logits[label], logits[y == label].mean(0))
    assert torch.equal(reply.payload.label_counts, torch.bincount(y, minlength=tiny.CLASSES))


def test_a_label_without_samples_is_zeros_and_has_count_zero():
    found = class_tables.means(*class_tables.sums(torch.ones(2, 3), torch.tensor([0, 0]), 3))
    assert_close(found, torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 0, 0]]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_table_pulls_each_image_of_a_taught_label(temperature):
    its = tiny.site(client(), tiny.problem())
    logits, y, found = terms(its, temperature=temperature, gamma=0.5)
    has = y < 2
    target = TABLE.softmax(1)[y[has]]
    expected = losses.kl(target, logits[has] / temperature) * int(has.sum()) / len(y)
    assert_close(found["table"], 0.5 * temperature**2 * expected)


def test_untaught_labels_give_no_gradient():
    its = tiny.site(client(), tiny.problem())
    x, y = its.train.take(torch.tensor([2, 5, 8]))
    assert y.tolist() == [2, 2, 2]
    student = its.problem.initial()
    value = dict(client().terms(student, Batch(x, y, 0, 3), taught(its)))["table"]
    gradients = torch.autograd.grad(value, list(student.learnable.values()))
    assert float(value.detach()) == 0
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_without_a_table_or_weight_it_is_plain_local_training():
    its = tiny.site(client(), tiny.problem())
    plain = tiny.fit(Supervised(), tiny.job(its.problem, payload=Payload()), its).state.kept
    tiny.assert_same_weights(tiny.fit(client(), tiny.job(its.problem, payload=Payload()), its).state.kept, plain)
    tiny.assert_same_weights(tiny.fit(client(gamma=0), taught(its), its).state.kept, plain)
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(tiny.fit(client(), taught(its), its).state.kept, plain)
