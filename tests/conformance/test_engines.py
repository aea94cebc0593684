"""The same bytes in one process and in several, for every algorithm."""

import algorithms
import tiny
from algorithms import Trail

from fedkd.engine import Engine


def test_two_workers_give_the_bytes_of_one_process(trail: Trail, pool: Engine):
    pool.serve(trail.assembly.site)  # type: ignore[attr-defined]
    played = algorithms.play(trail.experiment, pool)
    tiny.assert_same(algorithms.what_counts(played), algorithms.what_counts(trail.rounds))
