"""Every test here runs for every algorithm."""

from collections.abc import Iterator

import algorithms
import pytest
from algorithms import Trail

from fedkd.engine import Engine
from simulations import assemble


@pytest.fixture(scope="package", params=algorithms.words(), ids=" ".join)
def algorithm(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Its words on a command line."""
    return request.param


@pytest.fixture(scope="package")
def trail(algorithm: tuple[str, ...]) -> Trail:
    """Three rounds of it on scikit-learn's digits."""
    return algorithms.follow(assemble.assemble(algorithms.configure(algorithm)))


@pytest.fixture(scope="package")
def pool() -> Iterator[Engine]:
    """One Ray pool with two workers for all algorithms: starting one takes seconds."""
    ray_pool = pytest.importorskip("simulations.ray_pool")
    found = ray_pool.RayPool(None, workers=2).start()
    yield found
    found.close()
