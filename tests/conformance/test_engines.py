"""The same bytes in one process and in several, for every algorithm."""

import algorithms
import pytest
import tiny

from fedkd import rounds
from simulations.engines.ray_pool import RayPool


@pytest.mark.parametrize("words", algorithms.names(), ids=" ".join)
def test_two_workers_give_the_bytes_of_one_process(words: tuple[str, ...], two_workers: RayPool) -> None:
    """In the third round, when all knowledge flows and clients have states."""
    trail = algorithms.trail(words)
    two_workers.serve(trail.assembly.site)
    played = rounds.run_round(trail.experiment, two_workers, trail.states[2])
    tiny.assert_same(algorithms.what_counts([played]), algorithms.what_counts(trail.rounds[2:]))
