"""Students of different architectures: who says that it works across them does, and who does not is refused."""

import json

import algorithms
import pytest
import tiny
from algorithms import MIXED

from fedkd.config import RunConfig
from fedkd.configuration import compose
from fedkd.errors import ConfigError
from simulations import assemble
from simulations.assemble import Assembly

SAME_LATENT = "students={knfu-cnn: 0.5, knfu-cnn-bn: 0.5}"  # for those that compare latents


def is_able(algorithm: tuple[str, ...]) -> bool:
    return bool(algorithms.declared(algorithms.server(algorithm)).get("works_across_students"))


def made(config: RunConfig) -> Assembly | ConfigError:
    try:
        return assemble.assemble(config)
    except ConfigError as error:
        return error


def check_rounds(assembly: Assembly) -> None:
    assert assembly.experiment.problem.is_mixed
    played = algorithms.play(assembly.experiment, tiny.FakeEngine(assembly.site))
    assert not [failure for each in played for failure in each.failures]
    assert json.dumps([[each.row, each.clients] for each in played], allow_nan=False)


def mixed(algorithm: tuple[str, ...], *more: str) -> RunConfig:
    return algorithms.configure(algorithm, MIXED, *more)


def test_it_works_across_students_as_it_says(named):
    """If it compares latents, these must have the same width, and it says so."""
    if not is_able(named):
        pytest.skip("it says that it does not")
    found = made(mixed(named))
    if isinstance(found, ConfigError):
        assert "latent" in str(found)
        found = assemble.assemble(algorithms.configure(named, SAME_LATENT))
    check_rounds(found)


def test_if_not_it_is_refused_with_the_names_of_those_that_do(named):
    if is_able(named):
        pytest.skip("it works across students")
    with pytest.raises(ConfigError, match="students of different architectures") as caught:
        assemble.assemble(mixed(named))
    others = [other for other in compose.options("strategy") if is_able((f"strategy={other}",))]
    assert all(other in caught.value.mistakes[0].mend for other in others)


def test_if_not_it_works_within_architectures_or_says_why_not(named):
    if is_able(named):
        pytest.skip("it works across students")
    found = made(mixed(named, "students.mixed=groups", "rounds=2"))
    if isinstance(found, ConfigError):
        assert found.mistakes[0].mend
    else:
        check_rounds(found)
