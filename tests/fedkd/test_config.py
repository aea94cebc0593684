import dataclasses
from typing import Annotated

import pytest
from annotated_types import Ge

from fedkd import config, reference, schema
from fedkd.errors import ConfigError

NODES = [cls for cls in vars(config).values() if dataclasses.is_dataclass(cls) and cls.__module__ == config.__name__]


@pytest.mark.parametrize("node", NODES, ids=lambda cls: cls.__name__)
def test_every_key_says_what_it_means(node):
    unsaid = {"rounds"}  # a word of our own language, explained nowhere else than in its name
    keys = [key for key in reference.of(node) if not key.type.startswith("dict")]
    assert [key.name for key in keys if not key.comment and key.name not in unsaid] == []


def test_defaults_pass_their_own_checks():
    assert schema.check(config.RunConfig, schema.Draft({}), ()) == (config.RunConfig(), [])


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.RunConfig().rounds = 3


def test_nested_mistakes_are_found_beside_unknown_keys():
    draft = schema.Draft({"train": {"lr": 0, "speed": 1}, "rounds": -1, "nix": {"a": 1}})
    value, mistakes = schema.check(config.RunConfig, draft, ())
    assert value is None
    assert {mistake.what for mistake in mistakes} == {
        "train.lr = 0",
        "unknown key 'train.speed'",
        "rounds = -1",
        "unknown key 'nix.a'",
    }


def test_defaults_are_checked_and_written_like_any_value():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        alpha: float = 10
        beta: Annotated[int, Ge(0)] = 0

    value, mistakes = schema.check(Config, schema.Draft({}), ())
    assert mistakes == []
    assert isinstance(value.alpha, float)  # else one configuration had two texts, 10 and 10.0, and two hashes
    wrong = dataclasses.make_dataclass("Wrong", [("beta", Annotated[int, Ge(0)], -1)])
    assert schema.check(wrong, schema.Draft({}), ())[1][0].mend == "must be at least 0"


def test_both_halves_of_an_algorithm_may_not_share_a_key(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        weighting: str = "x"

    class Fake:
        pass

    Fake.Config = Config
    monkeypatch.setattr(schema.plugins, "client", lambda name: Fake)
    with pytest.raises(ConfigError, match="both have the keys: weighting"):
        schema.check_strategy(schema.Draft({"strategy": {"name": "fedavg", "client": "fake"}}))


def test_what_a_source_does_not_tell_is_checked_after_the_import(monkeypatch):
    draft = schema.Draft({"strategy": {"name": "fedavg", "client": "fedprox", "muu": 1}}, {("strategy", "muu"): "here"})
    monkeypatch.setattr(schema.reference, "of_half", lambda half, name: None)
    node, mistakes = schema.check_strategy(draft)
    assert node is None
    assert mistakes[0].what == "unknown key 'strategy.muu'"
    assert mistakes[0].where == "here"
    assert mistakes[0].mend.startswith("did you mean 'strategy.mu'?   allowed here: name, client, variant, share")
