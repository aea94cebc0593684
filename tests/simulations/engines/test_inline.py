import time

import tiny

from fedkd.engine import Failure, Job, Reply
from simulations.engines import inline
from simulations.engines.inline import Inline


class Slow:
    """A place where every job takes the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, job: Job) -> Reply:
        time.sleep(self.seconds)
        return Reply(client=job.client, round=job.round)


def jobs(problem, count):
    return [tiny.job(problem, client=client, exchange=1) for client in range(count)]


def test_jobs_run_in_order_at_the_site(problem, site):
    replies = list(Inline(site).run(jobs(problem, 3)))
    assert [tiny.lasting(reply) for reply in replies] == [tiny.lasting(site.run(job)) for job in jobs(problem, 3)]


def test_what_has_not_started_at_the_deadline_is_late(problem):
    results = list(Inline(Slow(0.05)).run(jobs(problem, 4), deadline=0.02))
    assert isinstance(results[0], Reply)
    assert [(late.client, late.cause, late.exchange) for late in results[1:]] == [(k, "late", 1) for k in (1, 2, 3)]


def test_without_deadline_nothing_is_late(problem):
    assert not any(isinstance(result, Failure) for result in Inline(Slow(0.0)).run(jobs(problem, 4)))


def test_late_names_the_client(problem):
    assert "client 2" in inline.late(tiny.job(problem, client=2)).what
