import gzip

import numpy as np
import pytest

from fedkd.data import idx
from fedkd.errors import DataError

NAME = "MNIST/raw/t10k-images-idx3-ubyte"
CONTENT = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3]) + bytes(range(6))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


def test_header_gives_the_shape(file, tmp_path):
    assert idx.read(tmp_path, NAME).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


def test_packed_file_serves_where_the_plain_one_is_missing(file, tmp_path):
    file.with_name(file.name + ".gz").write_bytes(gzip.compress(CONTENT))
    file.unlink()
    assert idx.read(tmp_path, NAME).sum() == 15


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (CONTENT[:-1], "truncated: 21 bytes, its header promises 22"),
        (CONTENT + b"x", "damaged: 23 bytes, its header promises 22"),
        (b"", "does not begin like an idx file"),
        (CONTENT[:10], "does not begin like an idx file"),
        (b"<html>not found</html>", "does not begin like an idx file"),
    ],
)
def test_bad_file_is_named_with_its_root_and_a_mend(file, tmp_path, content, says):
    file.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        idx.read(tmp_path, NAME)
    assert NAME in caught.value.message()
    assert str(tmp_path) in caught.value.message()
    assert "data.download=true" in caught.value.message()


def test_truncated_gzip_is_an_error_a_user_can_mend(file, tmp_path):
    file.with_name(file.name + ".gz").write_bytes(gzip.compress(CONTENT)[:-6])
    file.unlink()
    with pytest.raises(DataError, match=r"ubyte\.gz is truncated or damaged"):
        idx.read(tmp_path, NAME)


def test_published_size_with_other_bytes_is_damaged(tmp_path):
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes([0, 0, 8, 1]) + np.array([10000], ">u4").tobytes() + bytes(10000))
    with pytest.raises(DataError, match="SHA-256 differs"):
        idx.read(tmp_path, "MNIST/raw/t10k-labels-idx1-ubyte")
