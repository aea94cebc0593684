"""Own tables, signals and token ids: every format gives what `fedkd.Data` gives; what does not fit is refused."""

import builtins
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedkd.config import DataConfig
from fedkd.configuration import compose
from fedkd.data import sources
from fedkd.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
FORMS = {
    "table": RNG.normal(size=(10, 4)),
    "signal": RNG.normal(size=(10, 2, 8)),
    "tokens": RNG.integers(0, 9, (10, 6)),
}
Y = np.arange(10) % 2
CSV = "age,city,owner,weight\n" + "".join(f"{20 + at},{'ab'[at % 2]},u{at % 3},{at / 2}\n" for at in range(10))
TABLE = DataConfig(name="own", label="city")


def own(path, **keys):
    return sources.load(DataConfig(name="own", root=str(path), **keys))


def of_csv(tmp_path, text=CSV, **keys):
    (tmp_path / "rows.csv").write_text(text)
    return sources.load(replace(TABLE, root=str(tmp_path / "rows.csv"), **keys))


@pytest.mark.parametrize("names", [("x", "y"), ("X", "Y"), ("x_train", "y_train"), ("train_x", "train_y")])
@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_any_form_are_read_under_any_usual_name(tmp_path, form, names):
    x = FORMS[form]
    np.savez(tmp_path / "a.npz", **dict(zip(names, (x, Y), strict=True)))
    save_file(dict(zip(names, (x, Y), strict=True)), tmp_path / "a.safetensors")
    for suffix in ("npz", "safetensors"):
        data = own(tmp_path / f"a.{suffix}", shape=list(x.shape[1:]))
        every = torch.cat([data.train.x, data.test.x])
        assert sorted(every.flatten().tolist()) == sorted(torch.tensor(x).to(every.dtype).flatten().tolist())
        assert (len(data.train), len(data.test), data.labels) == (8, 2, ("0", "1"))
        assert data.vocabulary == (9 if form == "tokens" else 0)


def test_a_column_holds_classes_another_the_users_and_the_rest_are_features(tmp_path):
    data = of_csv(tmp_path, users="owner")
    assert data.labels == ("a", "b")
    assert data.train.x[0].tolist() == [20.0, 0.0]
    assert data.train.y.tolist()[:4] == [0, 1, 0, 1]
    assert data.users.tolist()[:4] == [0, 1, 2, 0]


def test_a_parquet_file_is_the_same_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    ours = of_csv(tmp_path, users="owner")
    pandas.read_csv(tmp_path / "rows.csv").to_parquet(tmp_path / "rows.parquet")
    theirs = sources.load(replace(TABLE, root=str(tmp_path / "rows.parquet"), users="owner"))
    assert torch.equal(ours.train.x, theirs.train.x)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    whole = builtins.__import__

    def absent(name, *rest):
        if name == "pandas":
            raise ImportError("No module named 'pandas'")
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(DataError, match=r"No module named 'pandas'(.|\n)*fedkd\[data\]"):
        of_csv(tmp_path)


def test_test_rows_come_from_a_second_file_with_the_same_columns(tmp_path):
    (tmp_path / "test.csv").write_text(CSV)
    data = of_csv(tmp_path, test=str(tmp_path / "test.csv"), users="owner")
    assert (len(data.train), len(data.test)) == (10, 10)
    (tmp_path / "test.csv").write_text(CSV.replace("age", "years"))
    with pytest.raises(DataError, match=r"columns differ .*: age, years"):
        of_csv(tmp_path, test=str(tmp_path / "test.csv"), users="owner")


def test_users_of_arrays_are_an_array(tmp_path):
    np.savez(tmp_path / "a.npz", x=FORMS["table"], y=Y, who=np.arange(10) % 5)
    # Labels are 0, 1, 0, 1, ...: a share of a half holds out every second sample of each, and users are counted anew.
    assert own(tmp_path / "a.npz", shape=[4], users="who", test_share=0.5).users.tolist() == [0, 1, 3, 0, 2, 3]
    with pytest.raises(DataError, match="no array 'them'"):
        own(tmp_path / "a.npz", shape=[4], users="them")


def test_standard_scaling_is_of_the_training_rows_or_as_agreed(tmp_path):
    x, _ = of_csv(tmp_path, users="owner", scaling="standard").train.take(torch.arange(8))
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=1e-5)
    agreed = of_csv(tmp_path, users="owner", scaling="standard", mean=[20.0, 0.0], std=[2.0, 1.0])
    assert agreed.train.take(torch.tensor([1]))[0].tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("text", "keys", "says"),
    [
        (CSV, {}, "column 'owner' is no number"),
        (CSV, {"users": "who"}, "there is no column 'who'"),
        (CSV.replace(",a,", ",,"), {"users": "owner"}, "row 1 has no 'city'"),
        (CSV.replace("20,", ","), {"users": "owner"}, "sample 0 of train holds NaN"),
        ("", {}, "the table cannot be read"),
        (CSV, {"users": "owner", "shape": [3]}, r"the samples have shape \[2\], agreed are \[3\]"),
        (CSV, {"users": "owner", "labels": ["a", "c"]}, "train has the class 'b'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(tmp_path, text, keys, says):
    with pytest.raises(DataError, match=says) as error:
        of_csv(tmp_path, text, **keys)
    assert "rows.csv" in str(error.value)


def test_bytes_are_neither_ids_nor_measurements(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 6), np.uint8), y=[0, 1, 0, 1])
    with pytest.raises(DataError, match=r"the samples are bytes of shape \[6\]"):
        own(tmp_path / "a.npz", shape=[6])
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 6)), X=np.zeros((4, 6)), y=[0, 1, 0, 1])
    with pytest.raises(DataError, match="the file holds X, x, y"):
        own(tmp_path / "a.npz", shape=[6])
    with pytest.raises(DataError, match="no such file"):
        own(tmp_path / "b.npz", shape=[6])
    (tmp_path / "a.txt").write_text("?")
    with pytest.raises(DataError, match="samples that are no images come from"):
        own(tmp_path / "a.txt", shape=[6])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.root=rows.csv"], "data.label=COLUMN"),
        (["data.shape=[20]", "data.mean=[1]"], "give data.mean and data.std, or neither"),
        (["data.shape=[1, 4, 4]", "data.labels=[a, b]", "data.users=who"], "beside tables, signals or token ids"),
    ],
)
def test_keys_that_do_not_go_together_are_mistakes(words, says):
    with pytest.raises(ConfigError, match=says):
        compose.resolve(["data=own", *words])


def test_devices_hold_images_only():
    with pytest.raises(ConfigError, match="no agreed form for devices"):
        sources.spec_of(TABLE)
