import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import fedkd
from fedkd import extensions, register
from fedkd.config import DataConfig
from fedkd.data import partition, sources, tables, user_data
from fedkd.data import partition_recipes as recipes
from fedkd.errors import ConfigError, DataError

X = np.arange(40.0).reshape(10, 4)
Y = np.arange(10) % 2


@pytest.fixture(autouse=True)
def _kept():
    with extensions.kept():
        yield


def load(data, **keys):
    register.data("mine")(lambda root: data)
    return sources.load(DataConfig(name="mine", **keys))


@pytest.mark.parametrize(
    "train",
    [
        (X, Y),
        (X.tolist(), Y.tolist()),
        (torch.tensor(X), torch.tensor(Y)),
        TensorDataset(torch.tensor(X), torch.tensor(Y)),
        (X, np.array(["no", "yes"])[Y]),
        (X.astype("float16"), Y.astype(bool)),
    ],
)
def test_arrays_tensors_lists_and_torch_datasets_are_one_thing(train):
    data = fedkd.Data(train=train)
    assert data.train_x.dtype == np.float32
    assert np.array_equal(data.train_x, X)
    assert np.array_equal(data.train_y, Y)
    assert len(data.labels) == 2
    assert data.shape == (4,)
    assert data.vocabulary == 0


def test_columns_of_a_data_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd")).assign(label=np.array(["no", "yes"])[Y])
    data = fedkd.Data(train=(frame[list("abcd")], frame["label"]))
    assert (data.labels, data.train_x.shape) == (("no", "yes"), (10, 4))


def test_whole_numbers_are_token_ids():
    dataset = load(fedkd.Data(train=(X.astype(int), Y), test=(X[:2].astype(int) + 50, Y[:2])))
    x, _ = dataset.train.take(torch.arange(3))
    assert x.dtype == torch.int64
    assert torch.equal(x, torch.arange(12).reshape(3, 4))
    assert dataset.vocabulary == 58


def test_without_a_test_part_every_fifth_sample_of_each_class_is_one():
    dataset = load(fedkd.Data(train=(X, Y), users=np.arange(10)))
    assert (len(dataset.train), len(dataset.test)) == (8, 2)
    assert dataset.test.x[:, 0].tolist() == [32.0, 36.0]
    assert dataset.users.tolist() == list(range(8))


@given(st.integers(2, 60), st.floats(0.05, 0.9))
def test_the_held_out_share_is_right_in_each_class(count, share):
    y = np.arange(2 * count) % 2
    is_test = user_data.held_out(y, share)
    for label in (0, 1):
        assert abs(is_test[y == label].sum() - share * count) < 1


def test_standard_scaling_is_learnt_from_training_data_alone():
    scaled = load(fedkd.Data(train=(X, Y), test=(X + 1000, Y)), scaling="standard")
    x, _ = scaled.train.take(torch.arange(10))
    assert torch.allclose(x.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(x.std(0, unbiased=False), torch.ones(4), atol=1e-5)
    assert scaled.test.take(torch.arange(10))[0].min() > 50


def test_floats_pass_as_they_are_and_bytes_are_scaled_like_pixels():
    floats = load(fedkd.Data(train=(X, Y), test=(X, Y)))
    assert torch.equal(floats.train.take(torch.arange(10))[0], torch.tensor(X, dtype=torch.float32))
    with extensions.kept():
        extensions._registered.clear()
        white, black = np.full((4, 1, 2, 2), 255, np.uint8), np.zeros((1, 1, 2, 2), np.uint8)
        bytes_ = load(fedkd.Data(train=(white, [0, 1, 0, 1]), test=(black, [0])))
    assert torch.equal(bytes_.train.take(torch.arange(4))[0], torch.ones(4, 1, 2, 2))


def test_a_constant_feature_is_only_shifted():
    mean, std = user_data.statistics(np.ones((5, 3), np.float32))
    assert (mean, std) == ((1.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"train": (X, Y[:9])}, r"samples \(10, 4\) and labels \(9,\)"),
        ({"train": (X[:, 0], Y)}, r"the samples of train have shape \(10,\)"),
        ({"train": (np.where(X == 8, np.nan, X), Y)}, "sample 2 of train holds NaN"),
        ({"train": (np.where(X == 8, np.inf, X), Y)}, "sample 2 of train holds an infinite value"),
        ({"train": (X.astype(int) - 1, Y)}, "whole numbers down to -1"),
        ({"train": (X.astype(str), Y)}, "are of type <U"),
        ({"train": (X, Y - 1)}, "labels are of type int64, from -1"),
        ({"train": (X, Y * 0.5)}, "labels are of type float64"),
        ({"train": (X, Y * 0)}, "there are 1 classes"),
        ({"train": (X[:0], Y[:0])}, "train is empty|shape"),
        ({"train": 3}, "train is a int"),
        ({"train": [1, 2, 3]}, "are no pairs"),
        ({"train": (X, Y), "test": (X[:, :3], Y)}, r"train has samples \(4,\) float32, test \(3,\) float32"),
        ({"train": (X, Y), "test": (X, Y + 1), "labels": ["a", "b"]}, "the labels of test"),
        ({"train": (X, np.array(["a", "b"])[Y]), "labels": ["a", "c"]}, "train has the class 'b'"),
        ({"train": (X, Y), "labels": ["a", "a"]}, "labels has 2 names"),
        ({"train": (X, Y), "users": [1, 2]}, r"users has shape \(2,\)"),
        ({"train": ([[1.0], [1.0, 2.0]], [0, 1])}, "is no array"),
        ({"train": (X, np.array(["1", "2"])[Y]), "test": (X, Y)}, "of two kinds"),
        ({"train": (np.ma.masked_array(X, X > 3), Y)}, "is a masked array"),
        ({"train": (X * 1e300, Y)}, "too large for float32"),
        ({"train": (X.astype(int).reshape(10, 2, 2), Y)}, r"no token ids \(N, length\)"),
        ({"train": (X, np.array(["a", None] * 5, object))}, "label 1 of train is None"),
        ({"train": (X, Y), "users": [None] * 10}, "some samples have no user"),
        ({"train": {"x": X, "y": Y}}, "train is a dict"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_a_sentence(given, what):
    with pytest.raises(DataError, match=what) as caught:
        fedkd.Data(**given)
    assert caught.value.mend


def test_an_error_of_the_users_function_is_shown_as_theirs(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import fedkd\n\n@fedkd.register.data('broken')\ndef f(root):\n    return 1 / 0\n"
    )
    extensions.load(tmp_path / "mine.py")
    with pytest.raises(DataError, match="data 'broken' raises ZeroDivisionError") as caught:
        sources.load(DataConfig(name="broken"))
    assert caught.value.where == f"{tmp_path / 'mine.py'}:5"
    with pytest.raises(DataError, match="gives a int"):
        load(3)


@pytest.mark.parametrize(("name", "shape", "sizes"), [("breast-cancer", (30,), (456, 113)), ("wine", (13,), (144, 34))])
def test_the_embedded_tables_are_there_without_a_download(name, shape, sizes):
    dataset = sources.load(DataConfig(name=name, scaling="standard"))
    assert (dataset.shape, len(dataset.train), len(dataset.test)) == (shape, *sizes)
    assert name in tables.NAMES
    assert set(dataset.test.y.tolist()) == set(range(len(dataset.labels)))


def test_a_client_of_partition_users_is_one_user():
    users = np.repeat(np.arange(6), [5, 1, 3, 4, 2, 5])
    labels = np.arange(20) % 2
    rng = np.random.default_rng(0)
    held = partition.split(recipes.Users(min_samples=2), labels, labels, 4, 2, rng, None, users)
    assert all(len(set(users[index])) == 1 and len(index) == (users == users[index[0]]).sum() for index in held.train)
    assert 1 not in {users[index[0]] for index in held.train}
    with pytest.raises(ConfigError, match="5 users have at least 2 samples"):
        partition.split(recipes.Users(min_samples=2), labels, labels, 6, 2, rng, None, users)
    with pytest.raises(ConfigError, match="do not say whose sample is whose"):
        partition.split(recipes.Users(), labels, labels, 2, 2, rng)
