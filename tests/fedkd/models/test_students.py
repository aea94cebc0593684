"""Every student on every shape of data: counts, blocks, taps, norms, and the errors when it does not fit."""

import functools
import pickle
import re
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from torch import nn
from torch.testing import assert_close

from fedkd import seeds, student
from fedkd.config import StudentsConfig
from fedkd.errors import ConfigError
from fedkd.models import layers, students

ROOT = Path(__file__).parents[3]
DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
NORMALISED = ("fedgen-cnn", "knfu-cnn-bn", "resnet8", "resnet20")

every_student = pytest.mark.parametrize("name", tiny.STUDENTS)
every_shape = pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR], ids=["digits", "mnist", "cifar"])


def build(name, shape=MNIST, classes=10, norm="batch"):
    make = functools.partial(students.make, name, shape=shape, classes=classes, norm=norm)
    return student.build(make, seeds.stream(3, "init"))


def images(shape, count=2):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(5))


def count(built):
    return sum(parameter.numel() for parameter in built.parameters())


def documented():
    """Rows of the table in docs/students.md: name, blocks, d, and parameters on digits, MNIST, CIFAR-10."""
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\w+(?:, \w+)*) \| (\d+) \|(.+)\|$", (ROOT / "docs/students.md").read_text(), re.M
    )
    return {
        name: (blocks.split(", "), int(width), [int(cell.replace(",", "")) for cell in cells.split("|")])
        for name, blocks, width, cells in rows
    }


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("fedgen-cnn", MNIST, 10, 26_434),  # as FedGen's code
        ("fedgen-cnn", MNIST, 26, 26_962),  # the same, EMNIST letters
        ("mcmahan-cnn", MNIST, 10, 1_663_370),  # as published: McMahan et al. 2017
        ("mlp", MNIST, 10, 199_210),  # McMahan et al. 2017, section 3
        ("lenet5", CIFAR, 10, 62_006),  # of its layers, by hand
        ("fedd2s-cnn", MNIST, 10, 215_370),  # the same
        ("knfu-cnn", MNIST, 10, 416 + 12_832 + 1_568 * 64 + 64 + 650),
        ("resnet20", CIFAR, 10, 269_722 + 2_752),  # option A as published (0.27 M), and two shortcuts of option B
    ],
)
def test_parameter_counts_are_the_published_ones(name, shape, classes, expected):
    assert count(build(name, shape, classes)) == expected


def test_the_head_of_fedgens_student_has_330_parameters():
    assert (
        sum(entry.numel() for name, entry in build("fedgen-cnn").learnable.items() if name.startswith("head.")) == 330
    )


@every_student
def test_documentation_tells_blocks_width_and_counts(name):
    blocks, width, counts = documented()[name]
    assert [block for block, _ in build(name).named_children()] == blocks
    assert build(name).latent_width == width
    assert [count(build(name, shape)) for shape in (DIGITS, MNIST, CIFAR)] == counts


@every_student
@every_shape
def test_every_student_fits_every_shape(name, shape):
    built = build(name, shape, classes=7).eval()
    x = images(shape)
    z = built.features(x)
    assert z.shape == (2, built.latent_width)
    assert torch.equal(built(x), built.classify(z))
    assert built(x).shape == (2, built.num_classes) == (2, 7)


@every_student
@every_shape
def test_a_last_batch_of_one_sample_can_be_trained_on(name, shape):
    built = build(name, shape).train()
    loss = nn.functional.cross_entropy(built(images(shape, 1)), torch.tensor([3]))
    gradients = torch.autograd.grad(loss, list(built.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[-1].abs().sum() > 0


@every_student
def test_the_head_is_the_last_block_and_one_linear(name):
    built = build(name)
    assert type(built.head) is nn.Linear
    assert list(dict(built.named_children()))[-1] == "head"
    assert [entry for entry in built.learnable if entry.startswith("head.")] == ["head.weight", "head.bias"]


@every_student
def test_every_block_has_parameters_and_can_be_tapped(name):
    built = build(name).eval()
    blocks = dict(built.named_children())
    assert all(any(True for _ in block.parameters()) for block in blocks.values())
    x = images(MNIST)
    logits, taps = built.taps(x, blocks)
    assert list(taps) == list(blocks)
    assert torch.equal(logits, built(x))
    for block in blocks.values():  # blocks compose: nothing happens between them
        x = block(x)
    assert torch.equal(logits, x)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedgen-cnn", [(6, 14, 14), (16, 7, 7), (32,)]),
        ("mcmahan-cnn", [(32, 14, 14), (64, 7, 7), (512,)]),
        ("lenet5", [(6, 14, 14), (16, 5, 5), (120,), (84,)]),
        ("mlp", [(200,), (200,)]),
        ("resnet8", [(16, 28, 28), (16, 28, 28), (32, 14, 14), (64,)]),
    ],
)
def test_taps_have_the_shapes_of_the_papers_on_mnist(name, expected):
    built = build(name)
    _, taps = built.taps(images(MNIST), [block for block, _ in built.named_children() if block != "head"])
    assert [tuple(tap.shape[1:]) for tap in taps.values()] == expected


def test_fedgens_latent_has_no_activation():
    assert (build("fedgen-cnn").eval().features(images(MNIST, 8)) < 0).any()


def test_lenet5_sees_a_small_image_as_the_padded_one():
    small, large = build("lenet5", DIGITS).eval(), build("lenet5", (1, 32, 32)).eval()
    x = images(DIGITS)
    assert_close(small(x), large.load(small.weights)(nn.functional.pad(x, (12, 12, 12, 12))))


@pytest.mark.parametrize("shape", [(1, 27, 27), (2, 5, 40), (3, 33, 6)])
@every_student
def test_odd_and_oblong_images_fit_too(name, shape):
    assert build(name, shape).eval()(images(shape)).shape == (2, 10)


@pytest.mark.parametrize("name", NORMALISED)
def test_group_norm_has_the_same_parameters_and_no_statistics(name):
    batch, group = build(name), build(name, norm="group")
    assert {key: value.shape for key, value in batch.learnable.items()} == {
        key: value.shape for key, value in group.learnable.items()
    }
    assert batch.statistics
    assert not group.statistics
    assert not list(group.buffers())
    x = images(MNIST)
    assert torch.equal(group.train()(x), group.eval()(x))


def test_groups_divide_the_channels_and_hold_two_or_more():
    assert [layers.groups(channels) for channels in (6, 16, 32, 64, 10, 7, 1)] == [3, 8, 8, 8, 5, 1, 1]


@every_student
def test_weights_survive_a_round_trip(name):
    built = build(name)
    built.train()(images(MNIST))
    copy = student.build(functools.partial(students.make, name, MNIST, 10), seeds.stream(4, "init")).load(built.weights)
    assert torch.equal(copy.eval()(images(MNIST)), built.eval()(images(MNIST)))


@every_student
def test_building_draws_the_very_numbers_of_torchs_constructors(name):
    stream = seeds.stream(3, "init")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream.torch().get_state())
        expected = students.make(name, DIGITS, 10).weights
    built = build(name, DIGITS).weights
    assert all(torch.equal(built[entry], value) for entry, value in expected.items())


@every_student
def test_a_partial_of_make_survives_pickling(name):
    make = functools.partial(students.make, name, shape=DIGITS, classes=10, norm="batch")
    copy = student.build(pickle.loads(pickle.dumps(make)), seeds.stream(3, "init"))  # noqa: S301  # our own bytes
    assert all(torch.equal(value, copy.weights[entry]) for entry, value in build(name, DIGITS).weights.items())


def test_a_residual_unit_adds_its_input():
    unit = build("resnet8").stage1.unit1.eval()
    with torch.no_grad():
        unit.residue.norm2.weight.zero_()  # silences the residue
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unit(x), x.relu())


def test_images_that_are_too_small_are_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError, match="at least 5 x 5 pixels, these have 4 x 9") as error:
        students.make("resnet8", (1, 4, 9), 10)
    assert error.value.mistakes[0].mend == "choose one of: mlp, lenet5, mcmahan-cnn, knfu-cnn, fedd2s-cnn"


def test_an_unknown_student_is_a_mistake_with_a_proposal():
    with pytest.raises(ConfigError, match=r"unknown student 'resnet9'.*\n.*did you mean 'resnet8'"):
        students.make("resnet9", MNIST, 10)


def test_norms_that_do_not_apply_are_refused():
    for name in set(tiny.STUDENTS) - set(NORMALISED):
        with pytest.raises(ConfigError, match="'group' does not apply"):
            students.make(name, MNIST, 10, "group")
    with pytest.raises(ConfigError, match="unknown norm 'layer'"):
        students.make("mlp", MNIST, 10, "layer")


def test_conf_names_every_student_with_a_comment():
    files = {path.stem: path for path in (ROOT / "conf/students").glob("*.yaml")}
    assert set(files) == set(students.names())
    for name, path in files.items():
        text = path.read_text()
        assert re.match(r"# \S.{10,110}\n", text), path
        settings = yaml.safe_load(text)
        assert StudentsConfig(**settings) == StudentsConfig(name=name)
