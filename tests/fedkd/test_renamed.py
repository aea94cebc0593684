"""Halves written for an older fedkd are refused when they are defined."""

import pytest

from fedkd import renamed
from fedkd.client import Client
from fedkd.errors import ConfigError
from fedkd.strategy import Strategy

OLD = {
    "logits": lambda self, student, x, job: None,
    "consult": lambda self, site, job, x, y, position: None,
    "remember": lambda self, trained, job: None,
    "trips": lambda self, round: None,
    "asks": lambda self, cohort: None,
    "served": lambda self, state, client: None,
}


@pytest.mark.parametrize("base", [Client, Strategy])
@pytest.mark.parametrize("old", renamed.NEW_NAMES)
def test_a_half_with_an_old_method_is_refused_with_the_new_name(base, old):
    with pytest.raises(ConfigError, match=f"Mine defines {old}, which nothing calls") as caught:
        type("Mine", (base,), {old: OLD[old]})
    assert f"instead of {old} override {renamed.NEW_NAMES[old]}" in caught.value.mend


def test_an_old_method_of_a_mixin_is_refused_too():
    class Mixin:
        def logits(self, student, x, job): ...

    with pytest.raises(ConfigError, match="defines logits"):
        type("Mine", (Mixin, Client), {})


@pytest.mark.parametrize("own", [lambda self: 0, lambda self, student, x: x, staticmethod(abs), property(id), 3])
def test_a_helper_that_merely_has_an_old_name_is_the_authors_own(own):
    assert type("Mine", (Client,), {"logits": own, "served": own})


def test_the_new_names_are_methods():
    names = [new.split(",")[0] for new in renamed.NEW_NAMES.values()]
    assert [name for name in names if not hasattr(Client, name) and not hasattr(Strategy, name)] == []
