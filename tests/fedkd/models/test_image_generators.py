"""The generator of images: shapes, size, torch's own modules as its measure, and bytes that come back."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from fedkd import seeds
from fedkd.models import generators, image_generators

STREAM = seeds.stream(1, "generator")
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 5, 6)]


def init(shape=(1, 8, 8), noise=4, classes=3):
    return image_generators.init(STREAM, noise=noise, classes=classes, shape=shape)


def draw(batch=12):
    generator = STREAM.child("draw").torch()
    return torch.arange(batch) % 3, torch.randn(batch, 4, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_have_the_shape_of_the_data_and_lie_between_minus_one_and_one(shape):
    x = image_generators.generate(init(shape), *draw(), shape)
    assert x.shape == (12, *shape)
    assert (x.abs() < 1).all()
    assert x.std() > 0


def test_it_has_as_many_parameters_as_its_layers_add_up_to():
    weights = init((1, 28, 28), noise=64, classes=10)
    sizes = {name: weights[name].numel() for name in generators.learnable(weights)}
    assert sizes["hidden.weight"] + sizes["hidden.bias"] == 117_600
    assert round(sum(sizes.values()), -3) == 132_000


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_torchs_modules_compute(training):
    shape, weights = (1, 8, 8), init()
    layers = {
        "hidden": nn.Linear(7, 32 * 4),
        "norm1": nn.BatchNorm2d(32),
        "conv1": nn.Conv2d(32, 32, 3, padding=1),
        "norm2": nn.BatchNorm2d(32),
        "conv2": nn.Conv2d(32, 16, 3, padding=1),
        "norm3": nn.BatchNorm2d(16),
        "conv3": nn.Conv2d(16, 1, 3, padding=1),
    }
    modules = nn.ModuleDict(layers).train(training)
    modules.load_state_dict({name: value.clone() for name, value in weights.items()}, strict=False)
    y, noise = draw()
    up, leaky = nn.Upsample(scale_factor=2), nn.LeakyReLU(0.2)
    x = layers["hidden"](torch.cat([noise, nn.functional.one_hot(y, 3).float()], 1)).view(-1, 32, 2, 2)
    x = leaky(layers["norm2"](layers["conv1"](up(layers["norm1"](x)))))
    x = layers["conv3"](leaky(layers["norm3"](layers["conv2"](up(x))))).tanh()
    assert_close(image_generators.generate(weights, y, noise, shape, training=training), x)
    if training:
        assert_close(weights["norm2.running_mean"], layers["norm2"].running_mean)


def test_only_training_moves_the_running_statistics():
    weights = init()
    before = tiny.canonical(weights)
    image_generators.generate(weights, *draw(), (1, 8, 8))
    tiny.assert_same(tiny.canonical(weights), before)
    image_generators.generate(weights, *draw(), (1, 8, 8), training=True)
    moved = {name for name, value in weights.items() if tiny.canonical(value) != before[name]}
    assert moved == set(weights) - set(generators.learnable(weights))


def test_the_label_makes_a_difference():
    _, noise = draw()
    one, other = (
        image_generators.generate(init(), torch.full((12,), y, dtype=torch.int64), noise, (1, 8, 8)) for y in (0, 2)
    )
    assert (one - other).abs().max() > 1e-3


def test_entries_come_from_the_stream_alone():
    tiny.assert_same(tiny.canonical(init()), tiny.canonical(init()))
    other = image_generators.init(STREAM.child(1), noise=4, classes=3, shape=(1, 8, 8))
    assert tiny.canonical(other) != tiny.canonical(init())


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_images_survive_as_bytes_to_half_a_step(values):
    x = torch.tensor(values).view(-1, 1, 1, 1)
    sent = image_generators.to_bytes(x)
    assert sent.dtype == torch.uint8
    assert ((image_generators.from_bytes(sent) - x).abs() <= 1 / 255 + 1e-6).all()


def test_bytes_come_back_as_they_were():
    every = torch.arange(256).to(torch.uint8)
    assert torch.equal(image_generators.to_bytes(image_generators.from_bytes(every)), every)
