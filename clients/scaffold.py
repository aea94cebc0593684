"""SCAFFOLD, client half: SGD whose gradient is corrected for the client's difference from the global gradient.

Source: Karimireddy et al., ICML 2020, Algorithm 1; docs/strategies/scaffold.md, equations 1 to 5. Server half:
scaffold.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import losses
from fedkd.off import Off
from fedkd.participation import Batch, Outcome, Site, Trained
from fedkd.payload import Payload, Weights
from fedkd.student import Student
from fedkd.training.forward import EVALUATION_BATCH


class Scaffold(Client):
    sends = frozenset({"weights", "reference"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        correction: Annotated[int, Ge(0), Le(1), Off("FedAvg")] = 1  # 1: SCAFFOLD; 0: variates are reported, not used
        variate: Literal["path", "gradient"] = "path"  # from the steps taken (paper: option II) or a full gradient (I)

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        yield "ce", losses.cross_entropy(student(batch.x), batch.y)
        slope, start = job.payload.reference, job.payload.weights
        if self.config.correction and slope is not None and start is not None:
            yield "correction", losses.linear(student.learnable, slope, start)

    def train(self, site: Site, job: Job) -> Outcome:
        """Within the participation `reference` is the correction itself, c - c_k, which is equal in all steps."""
        own = job.state.memory.get("control", {})
        slope = correction(job, own, len(site.train_index[job.client]))
        outcome = site.fit(self, replace(job, payload=replace(job.payload, reference=slope)))
        after = outcome.state.memory["control"]
        change = {name: value - own[name] if own else value for name, value in after.items()}
        return replace(outcome, payload=Payload(weights=outcome.payload.weights, reference=change))

    def next_memory(self, trained: Trained, job: Job) -> Mapping[str, Any]:
        """The client's next variate c_k: its mean gradient over the steps, or its full gradient at their start."""
        if self.config.variate == "gradient":
            return {"control": full_gradient(trained.site, job)}
        slope, start = job.payload.reference or {}, job.payload.weights or {}
        momentum = trained.site.problem.train.momentum
        scale = 1 / (trained.lr * effective_steps(trained.steps, momentum))
        learned = trained.student.learnable
        return {"control": {n: (start[n] - learned[n].detach()) * scale - s for n, s in slope.items()}}


def correction(job: Job, own: Weights, num_samples: int) -> Weights:
    """c - c_k; c_k = 0 at first. Where sizes count, c sums scaled variates and is divided by omega_k = n_k / mean n."""
    mean_size = (job.payload.numbers or {}).get("mean_size")
    omega = num_samples / mean_size if mean_size else 1.0
    received = job.payload.reference or {}
    return {name: c / omega - own[name] if own else c / omega for name, c in received.items()}


def effective_steps(steps: int, momentum: float) -> float:
    """By how many learning rates a constant gradient moves SGD in `steps` steps; without momentum: `steps`."""
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def full_gradient(site: Site, job: Job) -> Weights:
    """Gradient of the mean cross entropy over all the client's samples at the received weights, in eval mode."""
    student = site.frozen(job.client, job.state.kept, job.payload.weights or {})
    names = list(job.payload.reference or {})
    parameters = [student.learnable[name] for name in names]
    x, y = site.own(job.client)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for part_x, part_y in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        loss = losses.cross_entropy(student(part_x), part_y) * (len(part_y) / len(y))
        torch._foreach_add_(sums, torch.autograd.grad(loss, parameters))
    return dict(zip(names, sums, strict=True))
