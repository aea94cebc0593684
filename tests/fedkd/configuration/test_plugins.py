import sys

import pytest

from fedkd import extensions
from fedkd.configuration import plugins, reference, validate
from fedkd.errors import ConfigError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of server halves in which a module can be written."""
    root = tmp_path / "toy_halves"
    root.mkdir()
    (root / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name, text: (root / f"{name}.py").write_text(text)
    for module in [name for name in sys.modules if name.startswith("toy_halves")]:
        del sys.modules[module]


HALF = """
from dataclasses import dataclass
from typing import Annotated, Literal
from annotated_types import Ge, Le
from fedkd.strategy import Strategy

class Toy(Strategy[int]):
    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        speed: Annotated[float, Ge(0), Le(1)] | None = 0.5  # of light
        kind: Literal["a", "b"] = (
            "a"  # or another
        )
"""


def test_modules_are_named_with_hyphens_and_private_ones_are_none(package):
    package("two_words", HALF)
    package("_shared", "")
    assert plugins.modules("toy_halves") == {"two-words": "toy_halves.two_words"}


def test_the_halves_of_this_project_are_found():
    assert {"fedavg", "fedgen"} <= set(plugins.names("strategies"))
    assert {"supervised", "fedprox", "fedgen"} <= set(plugins.names("clients"))
    assert plugins.client("fedprox").__name__ == "FedProx"
    assert plugins.strategy("fedavg").__name__ == "FedAvg"


@pytest.mark.parametrize("name", ["nix", "os", "fedprox.FedProx", "../x", ""])
def test_only_names_in_the_list_are_imported(name):
    with pytest.raises(ConfigError, match="there is no"):
        plugins.client(name)


def test_a_module_with_two_algorithms_is_refused(package):
    from fedkd.strategy import Strategy

    package("one", HALF)
    package("two", HALF + "\nclass Second(Toy):\n    pass\n")
    assert plugins._find("toy_halves", "one", Strategy).__name__ == "Toy"
    with pytest.raises(ConfigError, match="must define one subclass of Strategy, found Toy, Second"):
        plugins._find("toy_halves", "two", Strategy)


def test_an_entry_point_adds_an_algorithm_and_must_be_one(monkeypatch):
    from importlib.metadata import EntryPoint

    points = {
        "good": EntryPoint("good", "clients.fedprox:FedProx", "fedkd.clients"),
        "bad": EntryPoint("bad", "os:getcwd", "fedkd.clients"),
    }
    monkeypatch.setattr(extensions, "_all_entry_points", lambda: tuple(points.values()))
    assert "good" in plugins.names("clients")
    assert plugins.client("good").__name__ == "FedProx"
    with pytest.raises(ConfigError, match="is no subclass of Client"):
        plugins.client("bad")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("from fedkd import no_such_module", "ImportError: cannot import name 'no_such_module' from 'fedkd'"),
        ("class (", "SyntaxError"),
        ("Other = 1", "AttributeError: module 'toy_halves.old' has no attribute 'Mine'"),
    ],
)
def test_an_entry_point_that_cannot_be_loaded_is_an_error_of_its_package(package, monkeypatch, text, why):
    from importlib.metadata import EntryPoint

    package("old", text)
    point = EntryPoint("mine", "toy_halves.old:Mine", "fedkd.clients")
    monkeypatch.setattr(extensions, "_all_entry_points", lambda: (point,))
    with pytest.raises(ConfigError, match=r"the entry point 'mine' of fedkd\.clients cannot be loaded") as caught:
        plugins.client("mine")
    assert why in caught.value.what
    assert "'toy_halves.old' must go with this version of fedkd" in caught.value.mend


def test_an_entry_point_of_an_older_fedkd_is_told_the_new_name(package, monkeypatch):
    from importlib.metadata import EntryPoint

    package(
        "old", "from fedkd.client import Client\n\nclass Mine(Client):\n    def logits(self, student, x, job): ...\n"
    )
    point = EntryPoint("mine", "toy_halves.old:Mine", "fedkd.clients")
    monkeypatch.setattr(extensions, "_all_entry_points", lambda: (point,))
    with pytest.raises(ConfigError, match="Mine defines logits, which nothing calls") as caught:
        plugins.client("mine")
    assert "predictor" in caught.value.mend


def configs(package, monkeypatch, text):
    """The Configs of an entry point whose module has this text, and of `supervised`."""
    from importlib.metadata import EntryPoint

    package("mine", text)
    point = EntryPoint("mine", "toy_halves.mine:Toy", "fedkd.strategies")
    monkeypatch.setattr(extensions, "_all_entry_points", lambda: (point,))
    return validate.halves("mine", "supervised")


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("'Unheard'", "name 'Unheard' is not defined"),
        ("'list[Unheard]'", "name 'Unheard' is not defined"),
        ("EntryPoint", "Unable to generate pydantic-core schema for <class 'importlib.metadata.EntryPoint'>"),
    ],
)
def test_a_type_that_cannot_be_checked_is_a_mistake_of_the_plugin(package, monkeypatch, future, kind, why):
    text = HALF.replace('Literal["a", "b"]', kind).replace("import dataclass", "import dataclass as dataclass", 1)
    text = f"{future}from importlib.metadata import EntryPoint\n{text}"
    with pytest.raises(ConfigError) as caught:
        configs(package, monkeypatch, text)
    assert caught.value.what.startswith(f"Toy.Config declares the key 'kind' with a type that cannot be checked: {why}")
    assert caught.value.where == "toy_halves.mine"
    assert caught.value.mend.startswith("import the names of that type in its module")


def test_a_config_that_is_no_dataclass_would_lose_its_keys(package, monkeypatch):
    with pytest.raises(ConfigError, match=r"Toy\.Config is no dataclass, so its keys would be lost") as caught:
        configs(package, monkeypatch, HALF.replace("    @dataclass(frozen=True, kw_only=True)\n", ""))
    assert caught.value.where == "toy_halves.mine"
    assert caught.value.mend == "put @dataclass(frozen=True, kw_only=True) above it"


def test_the_reference_is_read_without_importing(package):
    package("toy", HALF)
    keys = reference.of_half("toy_halves", "toy")
    assert "toy_halves.toy" not in sys.modules
    assert keys == [
        reference.Key("speed", "float or null", ">= 0, <= 1", "0.5", "of light"),
        reference.Key("kind", "a | b", "", "a", "or another"),
    ]


def test_what_only_an_import_can_tell_is_left_open(package):
    package("heir", "from toy_halves.toy import Toy\nclass Heir(Toy):\n    pass\n")
    package("other", HALF.replace("Config(Strategy.Config)", "Config(Base)"))
    assert reference.of_half("toy_halves", "heir") is None
    assert reference.of_half("toy_halves", "other") is None
    assert reference.of_half("toy_halves", "nix") is None


def test_inherited_keys_are_part_of_the_reference():
    from fedkd.data.partition import RECIPES

    names = [key.name for key in reference.of(RECIPES["dirichlet"])]
    assert names[0] == "name"
    assert {"samples", "test", "alpha", "min_samples"} == set(names[1:])
