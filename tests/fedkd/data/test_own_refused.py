"""Own data that are not as agreed: each is refused by name, and others are told neither names nor numbers."""

import os
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import COLOUR, GREY, LABELS, attempt, device, pixels, refusal, write_folder
from PIL import Image
from safetensors.numpy import save_file

from fedkd.config import DataConfig
from fedkd.data import arrays, own, sources
from fedkd.data.image_spec import OwnDataError, public_reason
from fedkd.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey images, in order of class."""
    return write_folder(tmp_path / "images", pixels(10), ["cat"] * 5 + ["dog"] * 5)


# Refused: folders


def test_nothing_there(tmp_path):
    assert "is not there" in refusal(GREY, tmp_path / "nowhere").what
    (tmp_path / "notes.txt").write_text("?")
    assert "neither a folder nor" in refusal(GREY, tmp_path / "notes.txt").what


@pytest.mark.parametrize("below", ["", "cat", "train/cat"])
def test_an_empty_folder(tmp_path, below):
    (tmp_path / "data" / below).mkdir(parents=True)
    assert "there is no image in it" in refusal(GREY, tmp_path / "data").what


def test_a_test_part_alone(tmp_path):
    assert "none 'train'" in refusal(GREY, write_folder(tmp_path / "test", pixels(2), ["cat", "dog"]).parent).what


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unreadable to root")
def test_an_unreadable_folder(folder):
    (folder / "cat").chmod(0)
    assert "cannot be read" in refusal(GREY, folder).what


def test_a_folder_that_vanishes_while_it_is_read(tmp_path):
    from fedkd.data import image_folder

    with pytest.raises(OwnDataError, match="the folder cannot be read: No such file"):
        image_folder.read(tmp_path / "gone", sources.spec_of(GREY))


def test_an_unknown_class_is_named_with_the_nearest(folder):
    (folder / "dog").rename(folder / "dogs")
    error = refusal(GREY, folder)
    assert error.what == "the class 'dogs' is unknown"
    assert "did you mean 'dog'?" in error.mend
    assert "cat, dog, owl" in error.mend
    assert "dogs" not in public_reason(error)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_file_that_is_no_image_is_named(folder, content):
    (folder / "cat/0002.png").write_bytes(content)
    error = refusal(GREY, folder)
    assert "cannot be read as an image" in error.what
    assert error.where.endswith("cat/0002.png")


def test_a_truncated_image_is_named(folder):
    path = folder / "dog/0007.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert refusal(GREY, folder).where == str(path)


@given(st.binary(max_size=200), st.integers(0, 80))
def test_damage_anywhere_is_one_kind_of_error_or_none(tmp_path_factory, junk, at):
    place = tmp_path_factory.mktemp("damage")
    path = write_folder(place, pixels(1), ["cat"]) / "cat/0000.png"
    content = path.read_bytes()
    path.write_bytes(content[:at] + junk + content[at + len(junk) :])
    found = attempt(place)
    if isinstance(found, OwnDataError):
        assert found.where == str(path)
    else:
        assert found[0].shape == (1, 1, 4, 5)


def test_a_wrong_size_says_both_sizes(folder):
    Image.fromarray(pixels(1, (6, 5))[0]).save(folder / "cat/0003.png")
    error = refusal(GREY, folder)
    assert error.what == "an image is 6x5 pixels, agreed are 4x5 (height x width)"
    assert error.where.endswith("0003.png")
    assert "data.resize=fit" in error.mend


def test_deep_images_are_refused_not_clipped(folder):
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(folder / "cat/0003.png")
    assert "more than 8 bits" in refusal(GREY, folder).what


def test_an_absurdly_large_image_is_not_decoded(folder):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (9_000, 10_000, 60_000):  # the last two are beyond what Pillow itself warns of, and refuses
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        (folder / "cat/0003.png").write_bytes(bomb)
        assert any(word in refusal(GREY, folder).what for word in ("at most", "exceeds limit"))


def test_more_files_than_are_read(folder, monkeypatch):
    from fedkd.data import image_folder

    monkeypatch.setattr(image_folder, "MOST_SAMPLES", 9)
    assert "more than" in refusal(GREY, folder).what


def test_links_may_lead_within_but_not_out(folder, tmp_path):
    (folder / "dog/again.png").symlink_to(folder / "dog/0007.png")
    assert len(own.read(folder, GREY).train[0]) == 11
    (tmp_path / "secret.png").write_bytes((folder / "cat/0000.png").read_bytes())
    (folder / "cat/link.png").symlink_to(tmp_path / "secret.png")
    assert "leads out" in refusal(GREY, folder).what
    (folder / "cat/link.png").unlink()
    (folder / "owl").symlink_to(tmp_path)
    assert "leads out" in refusal(GREY, folder).what


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_refused_at_once(folder, make):
    make(folder / "cat/thing.png")
    assert "this is no file" in refusal(GREY, folder).what


def test_a_file_beside_the_class_folders(folder):
    (folder / "labels.csv").write_text("?")
    assert "not in a folder of its class" in refusal(GREY, folder).what


def test_too_few_samples_to_join(folder):
    error = refusal(replace(GREY, min_samples=9), folder)
    assert "8 are for training, at least 9" in error.what
    assert public_reason(error) == "it has too few images"
    device(replace(GREY, min_samples=8), folder)


def test_none_left_to_hold_out(tmp_path):
    assert "none is left" in refusal(GREY, write_folder(tmp_path, pixels(2), ["cat", "dog"])).what


# Refused: arrays

X, Y = pixels(4), np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({}, "the file holds nothing"),
        ({"x": X}, "the file holds x"),
        ({"train_x": X, "train_y": Y, "text_x": X}, "text_x"),
        ({"x": X, "y": Y[:3]}, r"x has shape \(4, 4, 5\) and y \(3,\)"),
        ({"x": X, "y": Y[:, None]}, r"y \(4, 1\)"),
        ({"x": X.astype(np.float32), "y": Y}, "pixels of type float32"),
        ({"x": X, "y": Y.astype(np.float32)}, "labels of type float32"),
        ({"x": X, "y": Y.astype(object)}, "Python objects"),
        ({"x": X, "y": Y + 1}, "the labels go from 1 to 3, agreed are 0 to 2"),
        ({"x": X, "y": Y - 1}, "the labels go from -1 to 1"),
        ({"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63)}, "agreed are 0 to 2"),
        ({"x": X, "y": np.array(["cat", "dog", "wolf", "cat"])}, "the class 'wolf' is unknown"),
        ({"x": X[..., None, None], "y": Y}, "has shape"),
        ({"x": np.stack([X, X], 1), "y": Y}, "has shape"),
        ({"x": X.swapaxes(1, 2), "y": Y}, "an image is 5x4 pixels"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty"),
        ({"train_x": X, "train_y": Y, "test_x": X[:0], "test_y": Y[:0]}, "test_x is empty"),
    ],
)
def test_arrays_that_are_not_as_agreed(tmp_path, parts, what):
    np.savez(tmp_path / "data.npz", **parts)
    error = refusal(GREY, tmp_path / "data.npz")
    assert error.where.endswith("data.npz")
    with pytest.raises(OwnDataError, match=what):
        device(GREY, tmp_path)  # the folder that holds it


def test_safetensors_that_are_not_as_agreed(tmp_path):
    save_file({"x": X.astype(np.float16), "y": Y}, tmp_path / "half.safetensors")
    assert "float16" in refusal(GREY, tmp_path / "half.safetensors").what
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "half.safetensors").read_bytes()[:-1])
    assert "cannot be read" in refusal(GREY, tmp_path / "cut.safetensors").what


def test_brighter_than_white_is_refused(tmp_path):
    digits = DataConfig(name="digits", min_samples=1)
    np.savez(tmp_path / "data.npz", x=np.full((4, 8, 8), 17, np.uint8), y=Y)
    assert "the pixels go up to 17, those of digits to 16" in refusal(digits, tmp_path / "data.npz").what
    images = write_folder(tmp_path / "images", pixels(4, (8, 8)), ["1"] * 4)
    assert "those of digits to 16" in refusal(digits, images).what


def header(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        header("(1000000000, 4, 5)") + bytes(20),  # would be 20 GB
        header("(1, 4, 5)") + bytes(19),
        header("(1, 4, 5)") + bytes(21),
        header("(-1, 4, 5)") + bytes(20),
        header("(1, 4, 5)", "|O") + bytes(160),
        header("__import__('os').getpid()"),
        header("(1,)" + " " * 2000),
        b"\x93NUMPY\x03\x00" + bytes(40),
        b"",
    ],
)
def test_headers_that_lie_cost_no_memory(tmp_path, content, monkeypatch):
    monkeypatch.setattr(arrays, "load", None)  # would be called to read
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", header("(1,)") + bytes(1))
    refusal(GREY, tmp_path / "data.npz")


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((500, 40, 50), np.uint8), y=np.zeros(500, int))
    monkeypatch.setattr(arrays, "MOST_BYTES", 999_999)
    monkeypatch.setattr(arrays, "load", None)  # would be called to read
    assert "more than" in refusal(replace(GREY, resize="fit"), tmp_path / "data.npz").what


@given(st.integers(0, 700), st.integers(1, 255))
def test_damage_in_a_file_of_arrays_is_found_or_harmless(tmp_path_factory, at, flip):
    path = tmp_path_factory.mktemp("damage") / "data.npz"
    np.savez(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= flip
    path.write_bytes(bytes(content))
    found = attempt(path)
    if isinstance(found, OwnDataError):
        assert str(path) in found.where
    else:
        np.testing.assert_array_equal(found[0][:, 0], X)
        assert found[1].tolist() == Y.tolist()


# Refused: configurations


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (DataConfig(name="own"), "data.labels = null"),
        (DataConfig(name="own"), "data.shape = null"),
        (replace(GREY, labels=["cat"]), "data.labels"),
        (replace(GREY, labels=["cat", "cat"]), "no name may occur twice"),
        (replace(GREY, labels=["cat", ""]), "printable"),
        (replace(GREY, labels=["cat", "a\nb"]), "printable"),
        (replace(GREY, shape=[2, 4, 5]), "data.shape = "),
        (replace(GREY, shape=[1, 4, 99999]), "data.shape = "),
        (replace(GREY, scaling="standard"), "data.mean = null"),
        (replace(COLOUR, scaling="standard", mean=[0.5], std=[1.0] * 3), "must be 3 numbers"),
        (DataConfig(name="digits", labels=LABELS), "belongs to data=own"),
        (DataConfig(name="digits", test="somewhere"), "belongs to data=own"),
    ],
)
def test_configurations_that_no_image_could_keep_to(tmp_path, config, what):
    for load in (lambda: device(config, tmp_path), lambda: own.load_server(config), lambda: sources.load(config)):
        with pytest.raises(ConfigError, match=what):
            load()


def test_a_simulation_needs_a_place():
    with pytest.raises(ConfigError, match=r"data.root = null"):
        sources.load(GREY)


def test_errors_of_other_kinds_tell_others_nothing():
    assert public_reason(ConfigError("clients.7 has 31 samples")) == "its data or configuration cannot be used"
