"""Rounds of an algorithm played or judged again from their replies, as somebody tells them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import algorithms
from algorithms import Trail

from fedkd.border import admission
from fedkd.border.admission import Admitted
from fedkd.config import EvaluateConfig
from fedkd.engine import Engine, Job, Reply, Result
from fedkd.experiment import Experiment


def given(reply: Reply) -> dict[str, Any]:
    return {kind: getattr(reply.payload, kind) for kind in reply.payload.kinds()}


@dataclass
class Replay(Engine):
    """Gives the replies of a round that was played, as somebody tells them."""

    said: Sequence[algorithms.Exchange]
    tell: Callable[[Reply], Any]
    name = "replay"

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        replies = {reply.client: reply for reply in self.said[jobs[0].exchange].replies}
        yield from (self.tell(replies[job.client]) for job in jobs)


def judged(
    trail: Trail,
    exchange: algorithms.Exchange,
    tell: Callable[[Reply], Any] = lambda reply: reply,
    order: Callable[[list[Any]], Sequence[Any]] = list,
) -> Admitted:
    """What is admitted of the replies of an exchange, as somebody tells them, in this order. Nothing is aggregated."""
    at = (exchange.cohort.round, exchange.cohort.exchange)
    jobs = {job.client: job for job in trail.jobs if (job.round, job.exchange) == at}
    told = order([tell(reply) for reply in exchange.replies])
    return admission.admit(trail.experiment, exchange.before, exchange.cohort, jobs, told)


def once(trail: Trail, exchanges: int) -> Experiment:
    """The experiment without evaluations, and with the first exchanges of a round only."""

    class Cut(type(trail.strategy)):  # type: ignore[misc]
        def num_exchanges(self, round: int) -> int:
            return exchanges

    config = replace(trail.experiment.config, rounds=99, evaluate=EvaluateConfig(every=99, pooled_every=99, probe=8))
    return replace(trail.experiment, config=config, strategy=Cut(trail.strategy.config))
