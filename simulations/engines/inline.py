"""The inline engine runs jobs one after another in this process."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from fedkd import engine
from fedkd.engine import Engine, Failure, Job, Result


class JobRunner(Protocol):
    """Runs one job: a `LocalSite`, or a stand-in in tests and benchmarks."""

    def run(self, job: Job) -> Result: ...


class Inline(Engine):
    """Runs jobs in order in this process; the driver calls `torch.set_num_threads(1)` once, as workers do.

    After the deadline no further job starts; the running job finishes.
    """

    name = "inline"

    def __init__(self, site: JobRunner) -> None:
        self.site = site

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        end = None if deadline is None else time.monotonic() + deadline
        for job in jobs:
            if end is not None and time.monotonic() >= end:
                yield late(job)
            else:
                yield self.site.run(job)


def late(job: Job) -> Failure:
    """The failure of a job that has no result at the deadline."""
    return engine.failed(job, f"client {job.client} did not answer before the deadline", "late")
