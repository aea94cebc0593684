"""Teachers: a frozen student's outputs on the samples of a participation, in the order in which they are drawn.

For `Client.precompute`. A sample that is drawn several times is predicted once: no teacher changes in between.
Augmented ones all differ, and a teacher sees what the student sees.
"""

from collections.abc import Callable

from torch import Tensor

from fedkd.engine import Job
from fedkd.participation import Site
from fedkd.payload import Weights
from fedkd.student import Student
from fedkd.training import augment, forward


def logits(site: Site, job: Job, x: Tensor, position: Tensor, *layers: Weights) -> Tensor:
    """Logits (S, C) of the job's student, overwritten by `layers`, in eval mode, without gradient.

    `x` (S, ...) are the samples as drawn, `position` (S,) their places in the client's training data.
    """
    return _ask(forward.logits, site, job, x, position, layers)


def latents(site: Site, job: Job, x: Tensor, position: Tensor, *layers: Weights) -> Tensor:
    """Latents z (S, d) of the same student."""
    return _ask(forward.latents, site, job, x, position, layers)


def _ask(
    say: Callable[[Student, Tensor], Tensor],
    site: Site,
    job: Job,
    x: Tensor,
    position: Tensor,
    layers: tuple[Weights, ...],
) -> Tensor:
    received = job.payload.weights or {}
    teacher = site.frozen(job.client, job.state.kept, received, *layers)
    if augment.names(site.problem.train):
        return say(teacher, x)
    different, rows = position.unique(return_inverse=True)
    x, _ = site.train.take(site.train_index[job.client][different])
    return say(teacher, x)[rows]
