import dataclasses
from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from fedkd import config
from fedkd.configuration import reference, validate
from fedkd.errors import ConfigError

NODES = [cls for cls in vars(config).values() if dataclasses.is_dataclass(cls) and cls.__module__ == config.__name__]


@pytest.mark.parametrize("node", NODES, ids=lambda cls: cls.__name__)
def test_every_key_says_what_it_means(node):
    unsaid = {"rounds"}  # a word of our own language, explained nowhere else than in its name
    keys = [key for key in reference.of(node) if not key.type.startswith("dict")]
    assert [key.name for key in keys if not key.comment and key.name not in unsaid] == []


def test_defaults_pass_their_own_checks():
    assert validate.check(config.RunConfig, validate.Draft({}), ()) == (config.RunConfig(), [])


@pytest.mark.parametrize(("value", "what"), [("flop", ""), (["flip", "flop"], ".1"), ({"a": 1}, ""), (3, "")])
def test_a_word_or_a_list_of_words_is_judged_as_what_it_is(value, what):
    _, mistakes = validate.check(config.RunConfig, validate.Draft({"train": {"augment": value}}), ())
    assert [mistake.what.split(" =")[0] for mistake in mistakes] == [f"train.augment{what}"]


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.RunConfig().rounds = 3


def test_nested_mistakes_are_found_beside_unknown_keys():
    draft = validate.Draft({"train": {"lr": 0, "speed": 1}, "rounds": -1, "nix": {"a": 1}})
    value, mistakes = validate.check(config.RunConfig, draft, ())
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

    value, mistakes = validate.check(Config, validate.Draft({}), ())
    assert mistakes == []
    assert isinstance(value.alpha, float)  # else one configuration had two texts, 10 and 10.0, and two hashes
    wrong = dataclasses.make_dataclass("Wrong", [("beta", Annotated[int, Ge(0)], -1)])
    assert validate.check(wrong, validate.Draft({}), ())[1][0].mend == "must be at least 0"


def halves_with(monkeypatch, **declared):
    """FedAvg's server half with a client half that declares this as `weighting`."""
    fields = [("weighting", declared["kind"], declared["default"])]

    class Fake:
        Config = dataclasses.make_dataclass("Config", fields, frozen=True, kw_only=True)

    monkeypatch.setattr(validate.plugins, "client", lambda name: Fake)
    return validate.Draft({"strategy": {"name": "fedavg", "client": "fake", "weighting": "uniform"}})


def test_a_key_may_stand_in_both_halves_and_is_one(monkeypatch):
    draft = halves_with(monkeypatch, kind=Literal["examples", "uniform"], default="examples")
    node, mistakes = validate.check_strategy(draft)
    assert mistakes == []
    assert node["weighting"] == "uniform"
    assert list(node).count("weighting") == 1
    wrong = dataclasses.replace(draft, values={"strategy": {**draft.values["strategy"], "weighting": "x"}})
    assert [mistake.what for mistake in validate.check_strategy(wrong)[1]] == ["strategy.weighting = x"]


@pytest.mark.parametrize(
    ("kind", "default"), [(str, "examples"), (Literal["examples", "uniform"], "uniform"), (Literal["uniform"], "x")]
)
def test_halves_that_declare_a_key_differently_do_not_match(monkeypatch, kind, default):
    draft = halves_with(monkeypatch, kind=kind, default=default)
    with pytest.raises(ConfigError, match="both have the key 'weighting' and declare it differently"):
        validate.check_strategy(draft)


def test_a_key_of_both_halves_is_listed_once_with_the_words_of_the_server_half():
    keys = {key.name: key for key in reference.of_algorithm("fedmd", "fedmd")}
    assert len(reference.of_algorithm("fedmd", "fedmd")) == len(keys)
    assert keys["public_epochs"].comment.startswith("on the public set")


def test_what_a_source_does_not_tell_is_checked_after_the_import(monkeypatch):
    draft = validate.Draft(
        {"strategy": {"name": "fedavg", "client": "fedprox", "muu": 1}}, {("strategy", "muu"): "here"}
    )
    monkeypatch.setattr(validate.reference, "of_half", lambda half, name: None)
    node, mistakes = validate.check_strategy(draft)
    assert node is None
    assert mistakes[0].what == "unknown key 'strategy.muu'"
    assert mistakes[0].where == "here"
    assert mistakes[0].mend.startswith("did you mean 'strategy.mu'?   allowed here: name, client, variant, share")
