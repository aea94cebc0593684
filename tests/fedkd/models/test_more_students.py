"""Students of signals and token ids, and the larger ones of images: shapes, blocks, draws, and what does not fit."""

from functools import partial

import pytest
import torch
from torch import nn

from fedkd import seeds, student
from fedkd.data.samples import blank
from fedkd.errors import ConfigError
from fedkd.models import more_students, students

FORMS = {  # of samples, and the size of the vocabulary
    "cnn1d": ((9, 128), 0),
    "textcnn": ((12,), 50),
    "gru": ((12,), 50),
    "vit-tiny": ((3, 32, 32), 0),
}
COUNTS = {  # by hand
    "cnn1d": 9 * 32 * 8 + 32 + 32 * 64 * 5 + 64 + 64 * 32 * 3 + 32 + 2 * (32 + 64 + 32) + 33 * 5,
    "textcnn": 50 * 128 + 128 * 100 * (3 + 4 + 5) + 300 + 301 * 5,
    "gru": 50 * 128 + 2 * 3 * 128 * (128 + 1) + 129 * 5,
    "vit-tiny": 3 * 4 * 4 * 192 + 192 + 12 * (12 * 192**2 + 13 * 192) + 2 * 192 + 193 * 5,
}
every_student = pytest.mark.parametrize("name", FORMS)


def make(name):
    shape, vocabulary = FORMS[name]
    return partial(students.make, name, shape, 5, vocabulary=vocabulary)


def samples(name):
    x = blank(3, *FORMS[name])
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 50, x.shape, generator=generator) if FORMS[name][1] else torch.rand(x.shape)


@every_student
def test_blocks_compose_to_logits_and_draw_what_torchs_constructors_draw(name):
    stream = seeds.stream(3, "init")
    built = student.build(make(name), stream).eval()
    assert sum(parameter.numel() for parameter in built.parameters()) == COUNTS[name]
    with stream.as_global():
        drawn = make(name)().weights
    assert all(torch.equal(value, drawn[entry]) for entry, value in built.weights.items())
    x = samples(name)
    logits, taps = built.taps(x)
    assert all(any(True for _ in block.parameters()) for block in built.blocks.values())
    assert list(taps) == list(built.blocks)
    assert torch.equal(logits, built.classify(built.features(x)))
    assert logits.shape == (3, 5)


@every_student
def test_one_sample_can_be_trained_on_with_exchanged_entries(name):
    built, other = (student.build(make(name), seeds.stream(seed, "init")).eval() for seed in (0, 1))
    x = samples(name)
    assert torch.allclose(torch.func.functional_call(built, other.weights, (x,)), other(x), rtol=1e-4, atol=1e-5)
    loss = nn.functional.cross_entropy(built.train()(x[:1]), torch.tensor([3]))
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(loss, list(built.parameters())))


def test_resnet18_is_torchvisions_with_a_small_stem():
    with torch.device("meta"):
        built = students.make("resnet18", (1, 32, 32), 5)
    assert built.learnable["conv1.weight"].shape == (64, 1, 3, 3)
    assert isinstance(built.net.maxpool, nn.Identity)


def test_texts_of_one_word_and_oblong_images_fit():
    assert students.make("textcnn", (1,), 5, vocabulary=9)(torch.zeros(2, 1, dtype=torch.int64)).shape == (2, 5)
    assert more_students.Patches(1, 8, (2, 3))(torch.zeros(2, 1, 8, 9)).shape == (2, 12, 8)


def test_positions_tell_rows_from_columns():
    assert len({tuple(row.tolist()) for row in more_students.positions(8, 3, 2).round(decimals=4)}) == 6


@pytest.mark.parametrize(
    ("name", "shape", "vocabulary", "what", "mend"),
    [
        ("fedgen-cnn", (20,), 0, "takes images, these samples are table rows of shape [20]", "choose students=mlp"),
        ("gru", (9, 128), 0, "takes token ids, these samples are signals", "choose one of: mlp, cnn1d"),
        ("mlp", (64,), 100, "these samples are token ids of shape [64]", "choose one of: textcnn, gru"),
        ("cnn1d", (1, 8, 8), 0, "takes signals, these samples are images", "choose one of: mlp, lenet5"),
        ("resnet18", (1, 8, 8), 0, "needs images of at least 9 x 9 pixels", "choose one of: mlp, lenet5"),
    ],
)
def test_a_student_of_other_samples_names_those_that_fit(name, shape, vocabulary, what, mend):
    with pytest.raises(ConfigError) as error:
        students.make(name, shape, 5, vocabulary=vocabulary)
    (mistake,) = error.value.mistakes
    assert what in mistake.what
    assert mistake.mend.startswith(mend)
