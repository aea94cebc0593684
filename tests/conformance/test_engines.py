"""The same bytes in one process and in several, for every algorithm."""

import algorithms
import pytest
import tiny
from algorithms import Trail

ray_pool = pytest.importorskip("simulations.ray_pool")


@pytest.fixture(scope="package")
def pool():
    """One pool with two workers for all algorithms: starting one takes seconds."""
    found = ray_pool.RayPool(None, workers=2).start()
    yield found
    found.close()


def test_two_workers_give_the_bytes_of_one_process(trail: Trail, pool):
    pool.serve(trail.assembly.site)
    played = algorithms.play(trail.experiment, pool)
    tiny.assert_same(algorithms.what_counts(played), algorithms.what_counts(trail.rounds))
