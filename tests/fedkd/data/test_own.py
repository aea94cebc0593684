"""Own data: every format gives the same samples, and each end holds its own part of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import COLOUR, GREY, LABELS, device, pixels, write_folder
from PIL import Image
from safetensors.numpy import save_file

from fedkd.config import DataConfig
from fedkd.data import own, sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey images, in order of class."""
    return write_folder(tmp_path / "images", pixels(10), ["cat"] * 5 + ["dog"] * 5)


# Formats


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
@pytest.mark.parametrize("config", [GREY, COLOUR], ids=["grey", "colour"])
def test_formats_without_loss_give_every_pixel(tmp_path, suffix, config):
    x = pixels(3, (4, 5) if config is GREY else (4, 5, 3))
    found, _ = own.read(write_folder(tmp_path, x, ["cat", "dog", "dog"], suffix), config).train
    np.testing.assert_array_equal(found[:, 0] if config is GREY else found.transpose(0, 2, 3, 1), x)


def test_jpeg_is_read(tmp_path):
    flat = np.full((2, 4, 5), 77, np.uint8)
    found, y = own.read(write_folder(tmp_path, flat, ["owl", "cat"], ".jpg"), GREY).train
    assert y.tolist() == [0, 2]
    assert np.abs(found.astype(int) - 77).max() <= 2


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(4), st.just(5))), st.data())
def test_the_same_images_in_every_format_are_the_same_samples(tmp_path_factory, x, data):
    y = np.sort(data.draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, 2))))  # a folder is read class by class
    place = tmp_path_factory.mktemp("formats")
    names = [LABELS[label] for label in y]
    np.savez(place / "named.npz", x=x, y=np.array(names))
    np.savez_compressed(place / "channels_first.npz", train_x=x[:, None], train_y=y.astype(np.uint8))
    np.savez(place / "channels_last.npz", train_x=np.asfortranarray(x[..., None]), train_y=y)
    save_file({"x": x[:, None].copy(), "y": y.astype(np.int32)}, place / "tensors.safetensors")
    write_folder(place / "images", x, names)
    for path in place.iterdir():
        found, labels = own.read(path, GREY).train
        np.testing.assert_array_equal(found[:, 0], x)
        assert (found.dtype, labels.dtype) == (np.uint8, np.int64)
        assert labels.tolist() == y.tolist()


def test_a_test_part_stays_one_in_every_format(tmp_path):
    x = pixels(4)
    write_folder(tmp_path / "images/train", x[:3], ["cat", "dog", "owl"])
    write_folder(tmp_path / "images/test", x[3:], ["dog"])
    parts = {"train_x": x[:3], "train_y": np.arange(3), "test_x": x[3:], "test_y": np.array([1])}
    np.savez(tmp_path / "arrays.npz", **parts)
    save_file(parts, tmp_path / "tensors.safetensors")
    for path in (tmp_path / "images", tmp_path / "arrays.npz", tmp_path / "tensors.safetensors"):
        made = device(GREY, path)
        assert made.train.y.tolist() == [0, 1, 2]
        assert made.test.y.tolist() == [1]
        assert torch.equal(made.test.x[:, 0], torch.from_numpy(x[3:]))


def test_a_class_may_be_called_train(tmp_path):
    config = replace(GREY, labels=["train", "bus"])
    _, y = own.read(write_folder(tmp_path, pixels(3), ["train"] * 3), config).train
    assert y.tolist() == [0, 0, 0]


def test_channels_follow_the_agreed_shape(tmp_path):
    grey, colour = pixels(1), pixels(1, (4, 5, 3))
    as_colour, _ = own.read(write_folder(tmp_path / "grey", grey, ["cat"]), COLOUR).train
    np.testing.assert_array_equal(as_colour[0], np.broadcast_to(grey, (3, 4, 5)))
    as_grey, _ = own.read(write_folder(tmp_path / "colour", colour, ["cat"]), GREY).train
    np.testing.assert_allclose(as_grey[0, 0], colour[0] @ [0.299, 0.587, 0.114], atol=1)
    np.savez(tmp_path / "colour.npz", x=colour, y=np.array([0]))
    np.testing.assert_array_equal(own.read(tmp_path / "colour.npz", GREY).train[0], as_grey)


def test_palettes_and_transparency_become_plain(tmp_path):
    (tmp_path / "cat").mkdir()
    image = Image.fromarray(pixels(1, (4, 5, 3))[0])
    image.quantize(8).save(tmp_path / "cat/palette.png")
    image.convert("RGBA").save(tmp_path / "cat/transparent.png")
    assert len(own.read(tmp_path, COLOUR).train[0]) == 2


def test_a_photograph_lying_on_its_side_is_turned_upright(tmp_path):
    (tmp_path / "cat").mkdir()
    turned = Image.fromarray(pixels(1)[0]).transpose(Image.Transpose.ROTATE_90)  # stored 5 high and 4 wide
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees, clockwise
    turned.save(tmp_path / "cat/photo.png", exif=exif)
    np.testing.assert_array_equal(own.read(tmp_path, GREY).train[0][0, 0], pixels(1)[0])


def test_fit_resamples_with_antialias(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (1, 40, 25))  # a pixel wide: without antialias they would survive
    config = replace(GREY, resize="fit")
    found, _ = own.read(write_folder(tmp_path / "images", stripes, ["cat"]), config).train
    assert found.shape == (1, 1, 4, 5)
    assert 110 <= found.min() <= found.max() <= 145
    np.savez(tmp_path / "arrays.npz", x=stripes, y=np.array([0]))
    np.testing.assert_array_equal(own.read(tmp_path / "arrays.npz", config).train[0], found)


def test_what_systems_leave_behind_is_skipped(folder):
    for name in (".DS_Store", "Thumbs.db", "cat/.hidden", "cat/desktop.ini", "public.npz"):
        (folder / name).write_bytes(b"?")
    assert len(own.read(folder, GREY).train[0]) == 10


def test_classes_may_be_numbers_where_no_name_is_one(tmp_path):
    config = replace(GREY, labels=["T-shirt/top", "owl"])  # no folder can have a slash in its name
    assert own.read(write_folder(tmp_path, pixels(2), ["0", "owl"]), config).train[1].tolist() == [0, 1]
    numbered = replace(GREY, labels=["1", "0"])
    assert sorted(own.read(write_folder(tmp_path / "b", pixels(1), ["1"]), numbered).train[1]) == [0]


def test_accents_taken_apart_are_the_same_name(tmp_path):
    config = replace(GREY, labels=["\u00e9t\u00e9", "hiver"])
    assert own.read(write_folder(tmp_path, pixels(1), ["e\u0301te\u0301"]), config).train[1].tolist() == [0]


# Held out, and scaled


@given(st.lists(st.integers(0, 2), min_size=10, max_size=60), st.floats(0.05, 0.6), st.integers(0, 5))
def test_a_share_of_each_class_is_held_out(tmp_path_factory, labels, share, client):
    y = np.array(labels)
    x = np.arange(len(y), dtype=np.uint8)[:, None, None] + np.zeros((len(y), 4, 5), np.uint8)
    path = tmp_path_factory.mktemp("share") / "data.npz"
    np.savez(path, x=x, y=y)
    config = replace(GREY, test_share=share)
    made = device(config, path, client=client)
    order = [part.x[:, 0, 0, 0].numpy() for part in (made.train, made.test)]
    assert sorted(np.concatenate(order)) == list(range(len(y)))  # each sample once, its label with it
    for rows, part in zip(order, (made.train, made.test), strict=True):
        assert sorted(rows) == list(rows)  # in stored order
        assert part.y.tolist() == y[rows].tolist()
    for label, count in zip(*np.unique(y, return_counts=True), strict=True):
        held = int((made.test.y == label).sum())
        assert abs(held - share * count) < 1 + (len(made.test) == 1)
        assert held < count
    again = device(config, path, client=client)
    assert torch.equal(again.test.x, made.test.x)


def test_other_clients_and_seeds_hold_out_others(tmp_path):
    np.savez(tmp_path / "data.npz", x=pixels(60), y=np.arange(60) % 3)
    drawn = [device(GREY, tmp_path, seed, client).test.x for seed, client in ((0, 0), (0, 1), (1, 0))]
    assert all(len(x) == 12 for x in drawn)
    assert not any(torch.equal(drawn[a], drawn[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_no_share_is_no_test_part(folder):
    assert len(device(replace(GREY, test_share=0.0), folder).test) == 0


def test_standard_scaling_takes_the_agreed_mean_and_deviation(folder):
    config = replace(COLOUR, scaling="standard", mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0])
    samples = device(config, folder).train
    x, _ = samples.take(torch.arange(1))
    expected = (samples.x[0] / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 1, 2]).view(
        3, 1, 1
    )
    torch.testing.assert_close(x[0], expected)


def test_symmetric_scaling_needs_nothing(folder):
    assert (sources.spec_of(COLOUR).scale, sources.spec_of(COLOUR).offset) == ((2 / 255,) * 3, (-1.0,) * 3)


def test_own_images_for_a_published_task(tmp_path):
    config = DataConfig(name="fashion-mnist", resize="fit", min_samples=1)
    made = device(config, write_folder(tmp_path, pixels(5), ["Sandal"] * 5))
    assert (made.shape, made.labels[5], made.train.y.tolist()) == ((1, 28, 28), "Sandal", [5] * 4)


def test_static_facts_are_those_of_the_source():
    made = sources.load(DataConfig(name="digits"))
    known = sources.SOURCES["digits"]
    assert (known.labels, known.shape) == (made.labels, made.shape)
    assert {name: len(source.labels) for name, source in sources.SOURCES.items()} == {
        "digits": 10,
        "mnist": 10,
        "fashion-mnist": 10,
        "emnist-letters": 26,
        "cifar10": 10,
        "cifar100": 100,
    }
    assert all(len(source.mean) == source.shape[0] for source in sources.SOURCES.values())


# The server


def test_a_server_holds_a_test_set_and_nothing_else(folder):
    assert (len(own.load_server(GREY).test), own.load_server(GREY).shape) == (0, (1, 4, 5))
    made = own.load_server(replace(GREY, test=str(folder)))
    assert (len(made.train), len(made.test)) == (0, 10)
    digits = own.load_server(DataConfig(name="digits"))
    assert (len(digits.train), len(digits.test), digits.shape) == (0, 355, (1, 8, 8))


# In simulation


def test_a_simulation_takes_every_fifth_of_a_class_as_test(tmp_path):
    np.savez(tmp_path / "data.npz", x=pixels(20), y=np.repeat([0, 2], 10))
    made = sources.load(replace(GREY, root=str(tmp_path / "data.npz")))
    assert made.test.y.tolist() == [0, 0, 2, 2]
    assert torch.equal(made.test.x[:, 0], torch.from_numpy(pixels(20)[[4, 9, 14, 19]]))
    apart = sources.load(replace(GREY, root=str(tmp_path), test=str(tmp_path / "data.npz")))
    assert (len(apart.train), len(apart.test)) == (20, 20)
