"""Every test here runs for every algorithm."""

import algorithms
import pytest
from algorithms import Trail


@pytest.fixture(scope="package", params=algorithms.words(), ids=" ".join)
def algorithm(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Its words on a command line."""
    return request.param


@pytest.fixture(scope="package")
def trail(algorithm: tuple[str, ...]) -> Trail:
    """Three rounds of it on scikit-learn's digits."""
    return algorithms.trail(algorithm)


@pytest.fixture(scope="package", params=algorithms.names(), ids=" ".join)
def named(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Each file of conf/strategy once, for what variants have no part in."""
    return request.param


@pytest.fixture(scope="package")
def again(trail: Trail) -> Trail:
    """The same rounds once more, with replies that come in another order."""
    return algorithms.follow(trail.assembly, order=lambda replies: [*replies[1::2], *replies[::2]][::-1])
