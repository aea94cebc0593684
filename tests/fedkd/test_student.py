"""Students as containers: blocks, head, weights, and initial entries from a stream alone."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedkd import seeds, student
from fedkd.student import Student


def make():
    blocks = OrderedDict(
        conv=nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        latent=nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 5)),
    )
    blocks["head"] = nn.Linear(5, 3)
    return Student(blocks)


@pytest.fixture
def stream():
    return seeds.stream(7, "init")


@pytest.fixture
def built(stream):
    return student.build(make, stream)


@pytest.fixture
def x():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_forward_is_classify_after_features(built, x):
    z = built.features(x)
    assert z.shape == (6, built.latent_width) == (6, 5)
    logits = built.eval()(x)
    assert logits.shape == (6, built.num_classes) == (6, 3)
    assert torch.equal(logits, built.classify(built.features(x)))


def test_taps_are_the_outputs_of_the_blocks(built, x):
    built.eval()
    logits, taps = built.taps(x, ["conv", "latent"])
    assert list(taps) == ["conv", "latent"]
    assert torch.equal(taps["latent"], built.features(x))
    assert torch.equal(taps["latent"], built.latent(taps["conv"]))
    assert torch.equal(logits, built.classify(taps["latent"]))


def test_an_unknown_tap_is_an_error(built, x):
    with pytest.raises(KeyError, match="no block"):
        built.taps(x, ["stage9"])


def test_the_last_block_must_be_a_linear_head():
    with pytest.raises(ValueError, match="must be called 'head'"):
        Student(OrderedDict(head=nn.Linear(4, 4), top=nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="must be called 'head'"):
        Student(OrderedDict())
    with pytest.raises(TypeError, match="must be one"):
        Student(OrderedDict(head=nn.Sequential(nn.Linear(4, 2))))


def test_weights_are_learnable_entries_then_float_statistics(built):
    assert list(built.weights) == [
        *("conv.0.weight", "conv.0.bias", "conv.1.weight", "conv.1.bias", "latent.1.weight", "latent.1.bias"),
        *("head.weight", "head.bias", "conv.1.running_mean", "conv.1.running_var"),
    ]
    assert set(built.learnable) | set(built.statistics) == set(built.weights)
    assert not any(entry.requires_grad for entry in built.weights.values())


def test_weights_are_a_copy(built):
    before = built.weights
    with torch.no_grad():
        built.head.weight.add_(1)
    assert torch.equal(built.weights["head.weight"], before["head.weight"] + 1)


def test_load_restores_weights_and_statistics(built, stream, x):
    built(x)  # moves the statistics
    other = student.build(make, stream.child("other"))
    assert not torch.equal(other.head.weight, built.head.weight)
    other.load(built.weights)
    assert torch.equal(other.eval()(x), built.eval()(x))
    assert torch.equal(other.conv[1].running_mean, built.conv[1].running_mean)


def test_later_layers_win_and_absent_entries_stay(built):
    before = built.weights
    built.load({"head.bias": torch.full((3,), 1.0)}, {"head.bias": torch.full((3,), 2.0)})
    assert torch.equal(built.head.bias, torch.full((3,), 2.0))
    assert torch.equal(built.head.weight, before["head.weight"])


def test_load_keeps_the_parameters_themselves(built):
    parameters = list(built.parameters())
    built.load(built.weights)
    assert all(old is new for old, new in zip(parameters, built.parameters(), strict=True))


def test_a_deep_copy_computes_with_its_own_weights(built, x):
    twin = copy.deepcopy(built).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert twin.features(x).abs().sum() > 0
    assert torch.equal(twin(x), twin.classify(twin.features(x)))


def test_building_draws_the_very_numbers_of_torchs_constructors(stream):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream.torch().get_state())
        expected = make()
    built = student.build(make, stream)
    assert list(built.weights) == list(expected.weights)
    for name, value in expected.weights.items():
        assert torch.equal(built.weights[name], value), name


def test_building_leaves_torchs_global_generator_alone(stream):
    before = torch.get_rng_state()
    first = student.build(make, stream).weights
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        second = student.build(make, stream).weights
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_stream_gives_other_weights(stream):
    first, second = (student.build(make, stream.child(part)).weights for part in (1, 2))
    assert not torch.equal(first["conv.0.weight"], second["conv.0.weight"])


def test_built_norms_start_neutral_without_a_batch_counter(built, x):
    norm = built.conv[1]
    assert norm.num_batches_tracked is None
    for entry, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        assert_close(entry.detach(), torch.full((4,), float(value)), rtol=0, atol=0)
    built.train()(x)
    inside = built.conv[0](x)
    assert_close(norm.running_mean, 0.1 * inside.mean((0, 2, 3)).detach())  # momentum 0.1


def test_a_built_student_learns(built, x):
    gradients = torch.autograd.grad(built(x).square().mean(), list(built.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("layer", [nn.LSTM(2, 2), nn.ConvTranspose2d(1, 1, 2)])
def test_a_layer_without_a_known_law_is_refused(layer, stream):
    with pytest.raises(TypeError, match=f"no initial distribution for a {type(layer).__name__}"):
        student.initialise(layer, stream.torch())
