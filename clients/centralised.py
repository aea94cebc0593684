"""Centralised, client half: supervised training for as many steps as a whole cohort would take. Server half: the same.

The budget equals that of the FedAvg run that it is compared with (docs/strategies/centralised.md, equations 1 and 2).
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from fedkd.client import Client
from fedkd.config import TrainConfig
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.participation import Batch, Outcome, Site
from fedkd.student import Student
from fedkd.training import optimisers

STEPS_DRAWN = 100  # steps drawn at a time: the images of all steps of a cohort may not fit in memory


class Centralised(Client):
    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)

    def train(self, site: Site, job: Job) -> Outcome:
        config, state = site.problem.train, job.state
        student = site.student(job).train()
        optimiser = site.optimiser(job, student.learnable)
        budget = (job.payload.numbers or {}).get("budget", 1.0)
        steps = num_steps(config, budget, len(site.train_index[job.client]), site.problem.clients)
        sums: dict[str, float] = {}
        for start in range(0, steps, STEPS_DRAWN):
            count = min(STEPS_DRAWN, steps - start)
            drawn = site.draw(replace(job, state=state), replace(config, steps=count))
            batches = site.batches(self, job, drawn)
            means = optimisers.minimise(optimiser, batches, lambda batch: self.terms(student, batch, job))
            sums = {name: sums.get(name, 0.0) + count * mean for name, mean in means.items()}
            state = replace(state, epoch=drawn.epoch, position=drawn.offset)
        return site.close(self, job, student, drawn, {name: total / steps for name, total in sums.items()}, optimiser)


def num_steps(config: TrainConfig, budget: float, num_samples: int, clients: int) -> int:
    """SGD steps per round: those of `budget` clients. If steps follow from epochs, each client holds an equal share."""
    if config.steps is not None:
        return round(budget * config.steps)
    return max(1, round(config.epochs * budget / clients * math.ceil(num_samples / config.batch)))
