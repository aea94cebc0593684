"""Arguments of Python as words of a command line."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

import fedkd
from fedkd import extensions, strict_yaml
from fedkd.configuration import compose
from fedkd.errors import ConfigError
from simulations.api import words


@pytest.fixture(autouse=True)
def _kept():
    with extensions.kept():
        yield


class MyNet(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()


def test_words_and_keywords_are_one_line():
    given = words.of(
        ["strategy=fedgen rounds=3", Path("my.yaml")], {"lr": np.float32(0.5), "proxy": None, "a.b": [1, 2]}
    )
    assert given == ["strategy=fedgen", "rounds=3", "my.yaml", "lr=0.5", "proxy=null", "a.b=[1, 2]"]


def test_in_a_grid_a_list_is_its_values():
    given = words.of([], {"strategy": ["fedavg", "fedgen"], "seed": range(3), "parts": [["mixup"]]}, grid=True)
    assert given == ["strategy=fedavg,fedgen", "seed=0,1,2", "parts=[mixup]"]


@pytest.mark.parametrize("line", ["strategy=fedgen strategy.variant=paper", "strategy=fedrep partition=shards", ""])
def test_a_configuration_as_a_mapping_is_the_same_again(line):
    resolved = compose.resolve(line.split())
    config = strict_yaml.read(resolved.to_yaml(), "test").plain
    again = compose.resolve(words.of([config], {}))
    assert again.digest() == resolved.digest()
    assert again.config == resolved.config


def test_keywords_replace_what_a_mapping_says():
    given = words.of(
        [{"strategy": {"name": "fedavg", "setting": "fedavg", "mu": 1}, "train": {"lr": 1}}], {"strategy": "knfu"}
    )
    assert given == ["train.lr=1", "strategy=knfu"]


def test_objects_have_their_own_names():
    data = fedkd.Data(train=(np.zeros((4, 2)), [0, 1, 0, 1]))
    given = words.of([], {"students": MyNet, "data": data})
    assert given == ["students=my-net", "data=my-data"]
    assert words.of([], {"students": [MyNet, "mlp"]}) == ["students=[my-net, mlp]"]


def test_a_name_of_fedkd_stays_its_own():
    def mlp(shape, classes): ...

    assert words.of([], {"students": mlp}) == ["students=my-mlp"]


def test_a_registered_object_keeps_its_name():
    fedkd.register.student("wide")(MyNet)
    assert words.of([], {"students": MyNet}) == ["students=wide"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"students": nn.Linear(1, 1)}, "students is one Linear, and every client needs its own"),
        ({"students": lambda one, two, three: None}, "cannot make a student"),
        ({"rounds": object()}, "rounds is a object"),
        (
            {"students": [lambda: nn.Linear(1, 1), lambda: nn.Linear(1, 2)]},
            "two objects for students are called 'lambda'",
        ),
    ],
)
def test_what_cannot_be_a_value_is_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        words.of([], values)


def test_open_quotes_are_a_sentence():
    with pytest.raises(ConfigError, match="No closing quotation"):
        words.of(["students='{mlp: 0.5"], {})


def test_a_student_may_need_no_arguments():
    words.of([], {"students": lambda: nn.Linear(2, 3)})
    (known,) = extensions.registered("student")
    assert known.value((2,), 3).out_features == 3
