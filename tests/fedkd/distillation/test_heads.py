"""Heads on taps: sizes, and golden numbers worked out apart from this code."""

from functools import partial

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from fedkd import seeds
from fedkd.distillation import heads
from fedkd.distillation.heads import HeadDataset
from fedkd.models import students
from fedkd.training.optimisers import Sgd

STREAM = seeds.stream(0, "test")


@pytest.fixture(scope="module")
def cnn():
    make = partial(students.make, "fedd2s-cnn", (1, 28, 28), 10)
    return tiny.problem(make, input_shape=(1, 28, 28), classes=10)


@pytest.fixture
def normed():
    return tiny.problem(tiny.normed)


def size(head):
    return sum(entry.numel() for entry in head.parameters())


def test_taps_have_the_shapes_of_a_dry_run(cnn):
    assert heads.shapes(cnn) == {"conv1": (16, 14, 14), "conv2": (32, 7, 7), "fc1": (128,)}
    assert heads.shapes(cnn, side=4) == {"conv1": (16, 4, 4), "conv2": (32, 4, 4), "fc1": (128,)}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("tail", (214_954, 202_122, 1290)), ("flat", (31_370, 15_690, 1290))],
)
def test_heads_have_the_sizes_of_their_layers(cnn, kind, sizes):
    shapes = list(heads.shapes(cnn).values())
    assert tuple(size(heads.make(cnn, j, kind, shapes[j - 1])) for j in (1, 2, 3)) == sizes


@pytest.mark.parametrize("kind", ["tail", "flat"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_a_head_by_its_entries_says_what_the_head_itself_says(normed, kind, depth, training):
    student = normed.initial()
    shape = list(heads.shapes(normed).values())[depth - 1]
    tap = torch.randn(5, *shape, generator=STREAM.torch())
    head = heads.build(normed, depth, kind, shape, STREAM).train(training)
    entries, before = head.weights, tiny.canonical(dict(student.weights))
    assert_close(heads.logits(student, depth, kind, entries, tap, training=training), head(tap), rtol=0, atol=0)
    tiny.assert_same(tiny.canonical(dict(student.weights)), before)  # its blocks were lent, not used
    assert student.training


def test_pooling_leaves_a_tap_without_space_as_it_is():
    assert heads.features(torch.ones(2, 3, 8, 8), 4).shape == (2, 3, 4, 4)
    assert heads.features(torch.ones(2, 3), 4).shape == (2, 3)


def test_a_side_of_one_is_a_global_average_and_pooling_comes_before_the_adapter():
    tap = torch.randn(2, 3, 8, 8, generator=STREAM.torch())
    assert_close(heads.features(tap, 1).flatten(1), tap.mean((2, 3)))
    entries = heads.adapter((3, 2, 2), STREAM)
    expected = heads.features(tap, 2).flatten(1) @ entries["adapter.weight"].T + entries["adapter.bias"]
    assert_close(heads.features(tap, 2, entries), expected)


def test_the_tap_follows_the_depth(normed):
    student = normed.initial()
    assert [heads.tap(student, m) for m in (1, 2, 3)] == ["conv", "latent", "latent"]


# Golden numbers


def linear(width, classes):
    head = nn.Linear(width, classes).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


G2 = HeadDataset(
    taps=torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64),
    logits=torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 4]], dtype=torch.float64),
    y=torch.tensor([0, 1, 2]),
    weight=torch.ones(3, dtype=torch.float64),
)


def test_g2_one_server_step():
    head = linear(2, 3)
    found = dict(heads.terms(G2, head(G2.taps), 2.0, 1.0))
    assert found["ce"].item() == pytest.approx(1.09861228866811, abs=1e-13)
    assert found["kl"].item() == pytest.approx(0.90614470103093, abs=1e-13)
    grads = torch.autograd.grad(found["ce"] + found["kl"], list(head.parameters()))
    weight = [
        [-0.12174924245669, 0.45436764230914],
        [0.45436764230914, -0.12174924245669],
        [-0.33261839985246, -0.33261839985246],
    ]
    bias = [0.07028971913192, 0.07028971913192, -0.14057943826385]
    for got, expected in zip(grads, (weight, bias), strict=True):
        assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)
    Sgd(list(head.parameters()), 0.1).step(grads)
    after = [
        [0.00514595233248, -0.05246573614411, 0.04731978381163],
        [-0.05246573614411, 0.00514595233248, 0.04731978381163],
        [-0.04029081189844, -0.04029081189844, 0.08058162379688],
    ]
    assert_close(head(G2.taps), torch.tensor(after, dtype=torch.float64), rtol=0, atol=1e-13)


def test_no_gradient_reaches_what_clients_sent():
    sent = HeadDataset(G2.taps, G2.logits.clone().requires_grad_(), G2.y, G2.weight)
    head = linear(2, 3)
    grads = torch.autograd.grad(sum(v for _, v in heads.terms(sent, head(sent.taps), 2.0, 1.0)), [head.weight])
    assert torch.isfinite(grads[0]).all()
    assert not sent.taps.requires_grad


def test_without_the_clients_logits_only_the_labels_teach():
    assert set(dict(heads.terms(G2, linear(2, 3)(G2.taps), 2.0, 0.0))) == {"ce"}


def test_a_doubled_weight_is_a_doubled_sample():
    doubled = G2.take(torch.tensor([0, 1, 2, 2]))
    weighed = HeadDataset(G2.taps, G2.logits, G2.y, torch.tensor([0.75, 0.75, 1.5], dtype=torch.float64))
    logits = torch.randn(3, 3, dtype=torch.float64, generator=STREAM.torch())
    for (_, one), (_, other) in zip(
        heads.terms(doubled, logits[[0, 1, 2, 2]], 3.0, 1.0), heads.terms(weighed, logits, 3.0, 1.0), strict=True
    ):
        assert_close(one, other)


def test_g4_class_means():
    taps, y = torch.tensor([[1.0, 2], [3, 4], [5, 0]]), torch.tensor([0, 0, 2])
    labels = y.unique()
    assert labels.tolist() == [0, 2]
    assert heads.by_class(taps, y, labels).tolist() == [[2, 3], [5, 0]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_class_means_are_means(labels):
    y = torch.tensor(labels)
    values = torch.randn(len(y), 2, 3, generator=STREAM.torch())
    means = heads.by_class(values, y, y.unique())
    for mean, label in zip(means, y.unique(), strict=True):
        assert_close(mean, values[y == label].mean(0))


# Teaching


def taught(problem, depth=1, rows=9, epochs=2, batch=4, stream=STREAM):
    shape = list(heads.shapes(problem).values())[depth - 1]
    draw = seeds.stream(3, "lesson").torch()
    lesson = HeadDataset(
        torch.randn(rows, *shape, generator=draw),
        torch.randn(rows, tiny.CLASSES, generator=draw),
        torch.arange(rows) % tiny.CLASSES,
        torch.ones(rows),
    )
    head = heads.build(problem, depth, "tail", shape, seeds.stream(4, "head"))
    how = {"epochs": epochs, "batch": batch, "temperature": 3.0, "weight": 1.0}
    sgd = Sgd(list(head.parameters()), 0.05, 0.9)
    return head, lesson, [heads.teach(head, lesson, sgd, stream.child(i), **how) for i in range(epochs)]


def test_a_head_learns_and_its_shuffles_come_from_the_stream(normed):
    head, _, numbers = taught(normed, epochs=12)
    assert numbers[-1]["ce"] < 0.8 * numbers[0]["ce"]
    tiny.assert_same_weights(head, taught(normed, epochs=12)[0])
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(head, taught(normed, epochs=12, stream=STREAM.child("other"))[0])


def test_a_last_batch_of_one_sample_is_left_out_where_there_is_batchnorm(monkeypatch):
    seen = []
    terms = heads.terms
    monkeypatch.setattr(heads, "terms", lambda lesson, *a: (seen.append(len(lesson.y)), terms(lesson, *a))[1])
    taught(tiny.problem(tiny.normed), depth=2, rows=5, epochs=1)
    assert seen == [4, 1]  # a head without BatchNorm
    seen.clear()
    wide = tiny.problem(lambda: students.make("fedgen-cnn", (1, 6, 6), tiny.CLASSES))
    taught(wide, depth=1, rows=5, epochs=1)
    assert seen == [4]
