"""The embedded digits: the bytes of scikit-learn's own loader, without its import."""

import gzip
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from fedkd.data import digits
from fedkd.errors import DataError


def test_the_digits_are_those_of_scikit_learns_own_loader():
    from sklearn import datasets

    bunch = datasets.load_digits()
    (x, y), (test_x, test_y) = digits.read()
    assert (x.dtype, y.dtype, x.shape, test_x.shape) == (np.uint8, np.int64, (1442, 1, 8, 8), (355, 1, 8, 8))
    for label in range(10):
        stored = bunch.images[bunch.target == label].astype(np.uint8)[:, None]
        assert np.array_equal(test_x[test_y == label], stored[4::5])
        assert np.array_equal(x[y == label], np.delete(stored, np.s_[4::5], 0))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), (b"no gzip", "cannot be read"), (gzip.compress(b"1,2\n", mtime=0), "are not those")],
)
def test_a_damaged_file_is_named_with_the_way_to_mend_it(monkeypatch, tmp_path, content, says):
    place = tmp_path / "datasets" / "data"
    place.mkdir(parents=True)
    if content is not None:
        (place / "digits.csv.gz").write_bytes(content)
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(DataError, match=says) as caught:
        digits.read()
    assert "scikit-learn" in str(caught.value.mend)
