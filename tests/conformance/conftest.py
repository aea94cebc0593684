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
