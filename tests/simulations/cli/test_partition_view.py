import json

import numpy as np
import pytest

from fedkd.data.partition import Partition
from fedkd.errors import ConfigError, FolderError
from simulations.cli import partition_view

LABELS = np.array([0, 0, 0, 1, 1, 2])
NAMES = ("cat", "dog", "eel")


@pytest.fixture
def partition():
    train = (np.array([0, 1, 3]), np.array([2, 4, 5]))
    return Partition(train, (np.array([0]), np.array([1, 2])), 3, {"name": "iid", "samples": None})


def many(num_clients):
    own = tuple(np.array([client]) for client in range(num_clients))
    return Partition(own, own, 3, {"name": "iid"}), np.arange(num_clients) % 3


def test_json_has_plain_counts(partition):
    answer = partition_view.as_json(partition, LABELS)
    assert json.loads(json.dumps(answer)) == {"train": [3, 3], "test": [1, 2], "labels": [[2, 1, 0], [1, 1, 1]]}


def test_table_lists_clients_by_classes_and_their_sum(partition):
    lines = [line.split() for line in partition_view.table(partition, LABELS, NAMES, width=80).splitlines()]
    assert lines[:4] == [
        ["client", "train", "test", "labels", "cat", "dog", "eel"],
        ["0", "3", "1", "2", "2", "1", "·"],
        ["1", "3", "2", "3", "1", "1", "1"],
        ["all", "6", "3", "3", "3", "2", "1"],
    ]


def test_table_has_no_escape_codes_and_no_line_beyond_its_width(partition):
    text = partition_view.table(partition, LABELS, NAMES, width=80)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_long_names_become_numbers_with_a_legend(partition):
    text = partition_view.table(partition, LABELS, ("ankle boot", "bag", "coat"), width=80)
    assert text.splitlines()[0].split()[-3:] == ["0", "1", "2"]
    assert "classes: 0 ankle boot, 1 bag, 2 coat" in text


def test_classes_that_do_not_fit_become_the_most_frequent_ones():
    names = [f"class{label}" for label in range(20)]
    labels = np.repeat(np.arange(20), np.arange(1, 21))
    made = Partition((np.arange(210),), (np.arange(210),), 20, {"name": "iid"})
    lines = partition_view.table(made, labels, names, width=80).splitlines()
    assert lines[0].split()[-2:] == ["most", "frequent"]
    assert lines[1].split()[4:8] == ["class19", "20", "class18", "19"]
    assert max(map(len, lines)) <= 80


def test_long_table_says_how_many_clients_it_hides():
    made, labels = many(100)
    text = partition_view.table(made, labels, NAMES, width=80)
    assert len(text.splitlines()) < 50
    assert "... and 60 more clients" in text
    assert "all    100" in text  # the sum is of all clients


def test_digest_stands_whole_on_one_line(partition):
    assert f"sha256 {partition.digest()}" in partition_view.table(partition, LABELS, NAMES, width=40).splitlines()


@pytest.mark.parametrize("num_clients", [1, 2, 100])
def test_picture_is_a_png_of_sensible_size(tmp_path, num_clients):
    from matplotlib import image

    made, labels = many(num_clients)
    partition_view.picture(made, labels, NAMES, tmp_path / "split.png")
    height, width, _ = image.imread(tmp_path / "split.png").shape
    assert 300 < height < 2000
    assert 500 < width <= 2400


def test_picture_that_cannot_be_written_is_an_error(partition, tmp_path):
    with pytest.raises(FolderError, match="cannot write the picture"):
        partition_view.picture(partition, LABELS, NAMES, tmp_path / "nowhere" / "split.png")


def test_picture_of_an_unknown_format_is_a_mistake_that_names_the_formats(partition, tmp_path):
    with pytest.raises(ConfigError) as error:
        partition_view.picture(partition, LABELS, NAMES, tmp_path / "split.nope")
    assert error.value.where == "--picture"
    assert "png" in error.value.mend
    partition_view.picture(partition, LABELS, NAMES, tmp_path / "split.SVG")
    partition_view.picture(partition, LABELS, NAMES, tmp_path / "split")


def test_importing_the_view_loads_no_matplotlib():
    import subprocess
    import sys

    code = "import sys, simulations.cli.partition_view; print(*{'torch', 'matplotlib', 'scipy'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""
