"""The same bytes in one process and in several: what travels, for every algorithm, and real workers for some."""

import pickle
from typing import Any

import algorithms
import pytest
import tiny
from algorithms import Trail

from fedkd import rounds
from simulations.engines import ray_actor
from simulations.engines.ray_pool import RayPool


def travelled(value: Any) -> Any:
    """As it arrives in another process: equal, and no object is one that was sent."""
    return ray_actor.decode(pickle.loads(pickle.dumps(ray_actor.encode(value))))  # noqa: S301  our own bytes


def test_jobs_and_replies_that_travel_give_the_bytes_of_those_that_do_not(trail: Trail) -> None:
    """In the third round, when all knowledge flows and clients have states."""
    site = trail.assembly.site
    for exchange in trail.round(3):
        at = (3, exchange.cohort.exchange)
        jobs = {job.client: job for job in trail.jobs if (job.round, job.exchange) == at}
        for reply in exchange.replies:
            found = travelled(site.run(travelled(jobs[reply.client])))
            tiny.assert_same(tiny.lasting(found), tiny.lasting(reply))


@pytest.mark.parametrize("words", algorithms.names()[::4], ids=" ".join)
def test_two_workers_give_the_bytes_of_one_process(words: tuple[str, ...], two_workers: RayPool) -> None:
    """What travels is tested above for all; here are the processes, for some of every kind."""
    trail = algorithms.trail(words)
    two_workers.serve(trail.assembly.site)
    played = rounds.run_round(trail.experiment, two_workers, trail.states[2])
    tiny.assert_same(algorithms.what_counts([played]), algorithms.what_counts(trail.rounds[2:]))
