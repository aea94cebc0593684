"""FedRep and FedPer, client half: a private head on a shared body, trained one after the other or together.

Sources: Collins et al., ICML 2021, algorithm 1; Arivazhagan et al. 2019 (arXiv 1912.00818);
docs/strategies/fedrep.md, equations 1 to 3. Server half: fedrep.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Gt, Lt
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.participation import Batch, LocalBatches, Outcome, Site
from fedkd.student import Student
from fedkd.training import optimisers, teachers
from fedkd.training.optimisers import LocalOptimiser


class FedRep(Client):
    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        order: Literal["head_then_body", "joint"] = "head_then_body"  # FedRep: the other frozen; FedPer: joint
        head_share: Annotated[float, Gt(0), Lt(1)] = 0.5  # of the steps: the first train the head. Code: (E - 1) / E

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        z = batch.per_sample.get("z")  # latents of a frozen body
        logits = student(batch.x) if z is None else student.classify(z)
        yield "ce", losses.cross_entropy(logits, batch.y)

    def train(self, site: Site, job: Job) -> Outcome:
        if self.config.order == "joint":
            return site.fit(self, job)
        student, drawn = site.student(job).train(), site.draw(job)
        head, body = _split(drawn, self.config.head_share)
        of_head, of_body = (_optimiser(phase, site, student, job) for phase in ("head", "body"))
        # Latents of the received body in eval mode: while frozen, it neither learns nor updates statistics.
        per_sample = {"z": teachers.latents(site, job, head.x, head.position)}
        batches = site.batches(self, job, head, per_sample)
        first = optimisers.minimise(of_head, batches, lambda b: self.terms(student, b, job))
        second = optimisers.minimise(of_body, site.batches(self, job, body), lambda b: self.terms(student, b, job))
        outcome = site.close(self, job, student, drawn, _mean(first, len(head.sizes), second, len(body.sizes)))
        moments = {"head": of_head.memory(), "body": of_body.memory()}
        return replace(outcome, state=replace(outcome.state, optimiser=moments))


def _optimiser(phase: str, site: Site, student: Student, job: Job) -> LocalOptimiser:
    """An optimiser on the entries of one phase alone: weight decay would shrink frozen ones."""
    chosen = {name: p for name, p in student.learnable.items() if name.startswith("head.") == (phase == "head")}
    return site.optimiser(job, chosen, job.state.optimiser.get(phase, {}))


def _split(drawn: LocalBatches, head_share: float) -> tuple[LocalBatches, LocalBatches]:
    """The steps of the head and those of the body, at least one each; a single step is the body's."""
    steps = len(drawn.sizes)
    first = min(max(1, round(head_share * steps)), steps - 1)
    rows = sum(drawn.sizes[:first])
    head = replace(drawn, x=drawn.x[:rows], y=drawn.y[:rows], position=drawn.position[:rows], sizes=drawn.sizes[:first])
    body = replace(drawn, x=drawn.x[rows:], y=drawn.y[rows:], position=drawn.position[rows:], sizes=drawn.sizes[first:])
    return head, body


def _mean(first: Mapping[str, float], steps: int, second: Mapping[str, float], more: int) -> dict[str, float]:
    """Means of the terms over the steps of both phases."""
    return {name: (first.get(name, 0.0) * steps + value * more) / (steps + more) for name, value in second.items()}
