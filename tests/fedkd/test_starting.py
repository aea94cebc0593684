from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedkd import starting
from fedkd import student as students
from fedkd.errors import ConfigError, DataError
from fedkd.models import students as models
from fedkd.models import wrapped
from fedkd.seeds import stream
from fedkd.training.optimisers import Sgd

SHAPE = (1, 8, 8)


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
        self.last = nn.Linear(8, classes)

    def forward(self, x):
        return self.last(self.body(x))


def build(make, train="all"):
    return students.build(partial(starting.frozen, make, train), stream(0, "init"))


def ours():
    return models.make("fedgen-cnn", SHAPE, 4)


def theirs():
    return wrapped.make(Net(), SHAPE)


@pytest.mark.parametrize("make", [ours, theirs])
def test_what_is_frozen_is_no_entry_and_a_step_with_it_in_train_mode_changes_nothing_of_it(make):
    whole, student = build(make), build(make, "head")
    assert list(student.entries) == ["head.weight", "head.bias"]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert all(torch.equal(whole.weights[name], value) for name, value in student.weights.items())
    student.train()(torch.randn(6, *SHAPE)).sum().backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is not None] == [
        name for name in before if name.startswith(f"{'net.last' if make is theirs else 'head'}.")
    ]
    with torch.no_grad():
        for parameter in student.learnable.values():
            parameter -= parameter.grad
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) <= 2, "BatchNorm's statistics stay too"
    assert Sgd(list(student.learnable.values()), 0.1).parameters == list(student.learnable.values())


def test_patterns_choose_layers():
    student = build(ours, ["conv2.*", "head.*"])
    assert {name.partition(".")[0] for name in student.learnable} == {"conv2", "head"}
    assert {name.partition(".")[0] for name in student.statistics} == {"conv2"}


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ConfigError, match="no entry of the student fits 'layer4") as caught:
        build(ours, ["layer4.*", "head.*"])
    assert caught.value.mend.startswith("its layers: conv1.conv, conv1.norm")


@pytest.mark.parametrize("classes", [4, 7])
def test_a_file_gives_all_entries_and_the_head_if_it_has_its_size(tmp_path, classes):
    torch.manual_seed(1)
    source = Net(classes)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    drawn, student = build(theirs), build(theirs)
    starting.load(student, starting.read(tmp_path / "net.safetensors"))
    assert torch.equal(student.weights["body.1.weight"], source.body[1].weight)
    same = classes == 4
    assert torch.equal(student.weights["head.bias"], source.last.bias) if same else True
    assert torch.equal(student.weights["head.bias"], drawn.weights["head.bias"]) != same


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda e: e.pop("body.1.bias"), r"body\.1\.bias is missing"),
        (lambda e: e.update(more=torch.zeros(2)), "more is not the student's"),
        (lambda e: e.update({"body.1.bias": torch.zeros(3)}), r"body\.1\.bias has shape \[3\], the student's \[8\]"),
        (lambda e: e.update({"body.1.bias": torch.full((8,), torch.nan)}), "holds values that are no finite numbers"),
    ],
)
def test_a_file_of_another_student_is_refused(change, what):
    entries = Net().state_dict()
    change(entries)
    with pytest.raises(DataError, match=what):
        starting.load(build(theirs), entries)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"not one")
    with pytest.raises(DataError, match="is no safetensors file"):
        starting.read(tmp_path / "x")
    with pytest.raises(DataError, match="cannot be read"):
        starting.read(tmp_path / "y")
