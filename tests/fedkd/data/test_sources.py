import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.config import DataConfig
from fedkd.data import sources
from fedkd.errors import ConfigError, DataError

# Training images, sums of training and test pixels, training images of class 0: computed from the published files.
PUBLISHED = {
    "mnist": (60000, 1567298545, 264923200, 5923),
    "fashion-mnist": (60000, 3431114169, 573469082, 6000),
    "emnist-letters": (124800, 4297073983, 715955627, 4800),
    "cifar10": (50000, 18540682003, 3733375634, 5000),
}
FOLDERS = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "fashion-mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "emnist-letters": "EMNIST/raw/emnist-letters-train-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-py/data_batch_1",
}


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def letters(tmp_path):
    """A tiny EMNIST: three images of 2x3 pixels, labels a, z, b."""
    for part in ("train", "test"):
        stem = tmp_path / "EMNIST/raw"
        write_idx(stem / f"emnist-letters-{part}-images-idx3-ubyte", np.arange(18).reshape(3, 2, 3))
        write_idx(stem / f"emnist-letters-{part}-labels-idx1-ubyte", np.array([1, 26, 2]))
    return DataConfig(name="emnist-letters", root=str(tmp_path))


@pytest.fixture(scope="module")
def digits():
    return sources.load(DataConfig(name="digits"))


def test_the_sources_have_these_names():
    images = ("digits", "mnist", "fashion-mnist", "emnist-letters", "cifar10", "cifar100")
    assert sources.names() == (*images, "breast-cancer", "wine", "own")


def test_importing_sources_loads_nothing_heavy():
    code = "import sys, fedkd.data.sources; print(*{'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


def test_digits_are_split_by_rank_within_each_class(digits):
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    assert digits.shape == (1, 8, 8)
    # 1,797 digits have 174 to 183 of each class; a fifth, rounded down, are test images.
    assert torch.bincount(digits.test.y).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert digits.train.y[:10].tolist() == list(range(10))  # the file begins with 0 to 9, none of them of rank 4


def test_digits_are_scaled_from_sixteenths(digits):
    x, _ = digits.train.take(torch.arange(len(digits.train)))
    assert (x.min().item(), x.max().item()) == (-1, 1)


def test_standard_scaling_has_mean_zero_and_deviation_one():
    standard = sources.load(DataConfig(name="digits", scaling="standard"))
    x, _ = standard.train.take(torch.arange(len(standard.train)))
    assert abs(x.mean()) < 1e-3
    assert abs(x.std() - 1) < 1e-3


def test_letters_stand_upright_and_count_from_zero(letters):
    data = sources.load(letters)
    assert data.train.y.tolist() == [0, 25, 1]
    assert data.train.x[0, 0].tolist() == [[0, 3], [1, 4], [2, 5]]  # stored as [[0, 1, 2], [3, 4, 5]]
    assert data.train.x.is_contiguous()
    assert data.labels[25] == "z"


def test_symmetric_scaling_maps_bytes_to_minus_one_and_one(letters):
    samples = sources.load(letters).train
    value = 255 * samples.scale[0] + samples.offset[0]
    assert (samples.offset[0], value) == (-1, pytest.approx(1))


def test_a_label_out_of_range_is_damage(letters):
    write_idx(Path(letters.root) / "EMNIST/raw/emnist-letters-test-labels-idx1-ubyte", np.array([1, 27, 2]))
    with pytest.raises(DataError, match="labels 1 to 27, expected 1 to 26"):
        sources.load(letters)


def test_images_without_labels_are_damage(letters):
    write_idx(Path(letters.root) / "EMNIST/raw/emnist-letters-train-labels-idx1-ubyte", np.array([1, 26]))
    with pytest.raises(DataError, match="does not match its labels"):
        sources.load(letters)


def test_missing_file_is_named_with_two_ways_to_mend(letters):
    (Path(letters.root) / "EMNIST/raw/emnist-letters-test-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="emnist-letters-test-images-idx3-ubyte not found") as caught:
        sources.load(letters)
    assert f"data root {letters.root}, from data.root" in caught.value.message()
    assert "data.download=true, or set data.root" in caught.value.message()


def test_missing_root_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no CIFAR10: the data root does not exist"):
        sources.load(DataConfig(name="cifar10", root=str(tmp_path / "nowhere")))


def test_failed_download_says_what_failed(tmp_path, monkeypatch):
    from torchvision import datasets

    def offline(*args, **options):
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets, "MNIST", offline)
    with pytest.raises(DataError, match="cannot download MNIST: no network"):
        sources.load(DataConfig(name="mnist", root=str(tmp_path), download=True))


def test_download_asks_torchvision_for_both_parts(letters, monkeypatch):
    from torchvision import datasets

    images = Path(letters.root) / "EMNIST/raw/emnist-letters-test-images-idx3-ubyte"
    content, asked = images.read_bytes(), []
    images.unlink()

    def fetch(root, **options):
        asked.append((root, options))
        images.write_bytes(content)

    monkeypatch.setattr(datasets, "EMNIST", fetch)
    sources.load(DataConfig(name="emnist-letters", root=letters.root, download=True))
    assert asked == [(letters.root, {"train": half, "download": True, "split": "letters"}) for half in (True, False)]


def test_unknown_source_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        sources.load(DataConfig(name="mnits"))


def test_root_is_the_setting_then_the_environment_then_a_cache(monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", "/from/environment")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert sources.find_root(DataConfig(root="/from/setting")).path == Path("/from/setting")
    assert sources.find_root(DataConfig()).path == Path("/from/environment")
    monkeypatch.delenv("FEDKD_DATA")
    assert sources.find_root(DataConfig()).path == Path("/cache/fedkd/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert sources.find_root(DataConfig()).path == Path.home() / ".cache/fedkd/data"


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """A tiny CIFAR-100 whose MD5 sums torchvision is told to expect."""
    from torchvision import datasets

    pixels = np.arange(2 * 3 * 32 * 32, dtype=np.uint8).reshape(2, -1)
    contents = {
        "train": {"data": pixels, "fine_labels": [1, 0]},
        "test": {"data": pixels, "fine_labels": [0, 1]},
        "meta": {"fine_label_names": ["apple", "bear"]},
    }
    folder, sums = tmp_path / "cifar-100-python", {}
    folder.mkdir()
    for name, content in contents.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": sums["meta"]})
    return DataConfig(name="cifar100", root=str(tmp_path))


def test_cifar_images_have_channels_first(cifar100):
    data = sources.load(cifar100)
    assert data.shape == (3, 32, 32)
    assert data.train.x.flatten()[:3000].tolist() == [number % 256 for number in range(3000)]  # as stored
    assert data.train.y.tolist() == [1, 0]
    assert data.labels == ("apple", "bear")


def test_truncated_cifar_file_is_named(cifar100):
    path = Path(cifar100.root) / "cifar-100-python/test"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="cifar-100-python/test is truncated or damaged"):
        sources.load(cifar100)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sources_have_their_published_sums(name):
    root = os.environ.get("FEDKD_DATA")
    if not root or not (Path(root) / FOLDERS[name]).exists():
        pytest.skip(f"FEDKD_DATA names no folder with {name}")
    data = sources.load(DataConfig(name=name, root=root, scaling="standard"))
    count, train_sum, test_sum, zeros = PUBLISHED[name]
    assert len(data.train) == count
    assert (int(data.train.x.sum()), int(data.test.x.sum())) == (train_sum, test_sum)
    assert int((data.train.y == 0).sum()) == zeros
    pixels = data.train.x[:10000].float() * data.train.scale[0] + data.train.offset[0]
    assert abs(pixels[:, 0].mean()) < 0.02
