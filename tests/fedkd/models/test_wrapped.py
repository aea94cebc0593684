import copy
from functools import partial

import pytest
import torch
from torch import nn

from fedkd import student as students
from fedkd.errors import ConfigError
from fedkd.models import wrapped
from fedkd.seeds import stream


class Odd(nn.Module):
    """Blocks with operations between them, dropout, a counter, a tied pair, and a layer called `head` inside `head`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.calls += 1
        return self.head(self.drop(torch.relu(self.body(x))).flatten(1))


def made():
    return students.build(lambda: wrapped.make(Odd(), (6,)), stream(0, "init"))


def test_it_is_built_by_its_own_code_from_its_stream_and_the_global_generator_is_left_as_found():
    before = torch.get_rng_state()
    first, second = made().weights, made().weights
    other = students.build(lambda: wrapped.make(Odd(), (6,)), stream(1, "init")).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_only_its_heads_entries_are_called_so_and_its_counters_are_none():
    assert list(made().weights) == [
        "body.0.weight",
        "body.0.bias",
        "body.1.weight",
        "body.1.bias",
        "body.head.0.weight",
        "body.head.0.bias",
        "head.weight",
        "head.bias",
        "body.1.running_mean",
        "body.1.running_var",
    ]


def test_its_parts_fit_together():
    student, x = made().eval(), torch.randn(5, 6)
    z = student.features(x)
    assert z.shape == (5, student.latent_width)
    assert torch.equal(student.classify(z), student(x))
    assert student.num_classes == 3
    logits, taps = student.taps(x)
    assert list(taps) == list(student.blocks) == ["body", "drop", "head"]
    assert torch.equal(logits, taps["head"])
    with pytest.raises(KeyError, match="no block"):
        student.taps(x, ["nothing"])


def test_loading_entries_also_undoes_what_a_pass_has_counted():
    student = made()
    weights = student.weights
    student.train()(torch.randn(4, 6))
    assert student.net.calls == 1
    student.load(weights)
    assert student.net.calls == 0
    assert all(torch.equal(student.weights[name], value) for name, value in weights.items())


def test_a_copy_is_a_student_of_its_own():
    student = made()
    other = copy.deepcopy(student)
    other.load({name: value + 1 for name, value in student.weights.items()})
    assert not torch.equal(other.weights["head.bias"], student.weights["head.bias"])


def test_blocks_are_watched_in_the_pass_of_the_batch_alone():
    student, x, outputs = made().eval(), torch.randn(4, 6), {}
    handles = student.watch(x, outputs)
    with torch.no_grad():
        student(x)
    student(torch.randn(4, 6))
    assert not outputs
    z = student.features(x)
    for handle in handles:
        handle.remove()
    assert list(outputs) == ["body", "drop", "head"]
    assert torch.equal(outputs["head"], student.classify(z))
    assert outputs["body"].requires_grad


def test_a_tied_parameter_is_one_entry_by_the_heads_name():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    assert list(wrapped.make(net, (4,)).weights) == ["head.weight"]


def test_a_linear_classifier_and_lazy_layers_are_students_too():
    assert wrapped.make(nn.Linear(4, 2), (4,)).latent_width == 4
    lazy = students.build(lambda: wrapped.make(nn.Sequential(nn.LazyLinear(5), nn.LazyLinear(2)), (4,)), stream(0, "i"))
    assert lazy.weights["0.weight"].shape == (5, 4)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x), x


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (nn.Sequential(nn.Conv1d(1, 2, 3)), r"has no nn\.Linear"),
        (nn.Sequential(nn.Linear(4, 2)).double(), "'head.weight' is float64"),
        (nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 2)), "momentum=None"),
        ("a text", "is a str, no torch module"),
    ],
)
def test_what_can_be_no_student_is_refused(net, what):
    with pytest.raises(ConfigError, match=what):
        wrapped.make(net, (4,))


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (Pair(), "gives a tuple"),
        (nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)), "changes what its head '0' gives"),
        (nn.Sequential(nn.Linear(3, 2)), r"cannot take samples of shape \(4,\): RuntimeError"),
        (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 2)), "gives logits of shape"),
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3), nn.Linear(3, 3))[:2], None),
    ],
)
def test_a_module_that_is_no_classifier_is_refused_after_one_try(net, what):
    student = wrapped.make(net, (4,))
    if what is None:
        wrapped.check(student, torch.zeros(2, 4), "student 'x'")
        return
    with pytest.raises(ConfigError, match=f"student 'x' {what}"):
        wrapped.check(student, torch.zeros(2, 4), "student 'x'")


def test_a_named_head_must_be_one_of_its_linear_layers():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert wrapped.make(net, (4,), "0").latent_width == 4
    with pytest.raises(ConfigError, match=r"no nn\.Linear called '1'") as caught:
        wrapped.make(net, (4,), "1")
    assert caught.value.mend == "its linear layers: 0, 2"


@pytest.mark.parametrize(("channels", "stem", "side"), [(1, "small", 8), (3, "standard", 2)])
def test_torchvisions_resnet_with_either_stem(channels, stem, side):
    from fedkd.models import foreign

    make = partial(foreign.make, "torchvision:resnet18", (channels, 8, 8), 5, stem)
    student = students.build(make, stream(0, "init"))
    x = torch.zeros(2, channels, 8, 8)
    wrapped.check(student, x, "student")
    assert student.taps(x, ["layer1"])[1]["layer1"].shape[-1] == side
    assert student.latent_width == 512


def test_an_unknown_architecture_is_told_the_nearest():
    from fedkd.models import foreign

    with pytest.raises(ConfigError, match="there is no student 'torchvision:resnet19'") as caught:
        foreign.make("torchvision:resnet19", (3, 8, 8), 2, "standard")
    assert "torchvision:resnet18" in caught.value.mend
    with pytest.raises(ConfigError, match="takes images"):
        foreign.make("torchvision:resnet18", (20,), 2, "standard")
    with pytest.raises(ConfigError, match="no stem to make small"):
        foreign.make("torchvision:vgg11", (3, 32, 32), 2, "small")


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            return self.fc(x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x * self.calls + 1)


@pytest.mark.parametrize(
    ("net", "what"), [(Detached(), "gives logits without a gradient"), (Counting(), "gives other logits in a second")]
)
def test_what_cannot_be_trained_or_repeated_is_refused(net, what):
    student = wrapped.make(net, (4,))
    with pytest.raises(ConfigError, match=f"student 'x' {what}"):
        wrapped.check(student, torch.ones(2, 4), "student 'x'")


def test_what_its_own_code_has_frozen_stays_so():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    assert list(wrapped.make(net, (4,)).weights) == ["head.weight", "head.bias"]
    with pytest.raises(ConfigError, match="has nothing to train"):
        wrapped.make(net.requires_grad_(False), (4,))
    from fedkd.models import foreign

    dense = foreign.make("torchvision:densenet121", (3, 32, 32), 2, "small")
    assert not any(isinstance(module, nn.MaxPool2d) for module in dense.modules())
