"""Admission: which replies of an exchange count. The border checks each alone, then the guard compares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedkd import engine
from fedkd.border import checks, guard
from fedkd.engine import ClientId, Failure, Job, Reply
from fedkd.errors import RunError
from fedkd.experiment import Experiment
from fedkd.strategy import Cohort


@dataclass(frozen=True)
class Admitted:
    """Admitted replies in order of client, so that float sums do not depend on arrival, and the others' failures."""

    replies: list[Reply]
    failures: list[Failure]
    ratios: Mapping[ClientId, float]  # how much each reply stands out (guard.py)


def admit(
    experiment: Experiment,
    server: Any,
    cohort: Cohort,
    jobs: Mapping[ClientId, Job],
    results: Sequence[Reply | Failure],
) -> Admitted:
    """Sort the results of one exchange's jobs into admitted replies and failures."""
    problem, strategy, config = experiment.problem, experiment.strategy, experiment.config
    kinds, labels = strategy.expected_kinds(cohort), experiment.probe_labels
    probe = len(labels) if labels is not None else 0
    replies: list[Reply] = []
    failures: list[Failure] = []
    for job, result in engine.pair(list(jobs.values()), results):
        expected = checks.Expectation(
            kinds=kinds,
            classes=problem.classes,
            latent=problem.of(job.client).latent,
            weights=job.payload.weights,
            reference=job.payload.reference,
            probe=probe,
        )
        admitted = checks.admit(result, job, expected, partial(strategy.inspect, server, job))
        failures.append(admitted) if isinstance(admitted, Failure) else replies.append(admitted)
    screened = guard.screen(config, problem.classes, experiment.sizes, jobs, replies)
    return Admitted(screened.replies, failures + screened.failures, screened.ratios)


def check_quorum(quorum: int, cohort: Cohort, asked: int, admitted: Admitted) -> None:
    """Raises RunError if there are fewer admitted replies than the quorum."""
    replies, failures = admitted.replies, admitted.failures
    if len(replies) >= quorum:
        return
    causes = ", ".join(dict.fromkeys(f"client {f.client}: {f.what}" for f in failures[:3]))
    rejected = sum(failure.is_rejected for failure in failures)
    raise RunError(
        f"round {cohort.round}: only {len(replies)} of {asked} clients replied usefully, quorum is {quorum} "
        f"({len(failures) - rejected} failed, {rejected} rejected: {causes})",
        mend=f"The state of round {cohort.round - 1} is safe",
        failures=tuple(failures),
    )
