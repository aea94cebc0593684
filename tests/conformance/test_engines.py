"""The same bytes in one process and in several, for every algorithm."""

from collections.abc import Iterator

import algorithms
import pytest
import tiny

from clients.supervised import Supervised
from fedkd import rounds
from simulations.ray_pool import RayPool


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    """One pool with two workers for all algorithms: starting one takes seconds."""
    found = RayPool(tiny.site(Supervised(), tiny.problem()), workers=2).start()
    yield found
    found.close()


# Parametrised here, not by the fixture `algorithm`: with that one, pytest would start a pool for each algorithm.
@pytest.mark.parametrize("words", algorithms.words(), ids=" ".join)
def test_two_workers_give_the_bytes_of_one_process(words: tuple[str, ...], pool: RayPool) -> None:
    """In the third round, when all knowledge flows and clients have states."""
    trail = algorithms.trail(words)
    pool.serve(trail.assembly.site)
    played = rounds.play(trail.experiment, pool, trail.states[2])
    tiny.assert_same(algorithms.what_counts([played]), algorithms.what_counts(trail.rounds[2:]))
