"""SGD and Adam over lists of tensors: torch.optim's functions, with memory as a value that a State can hold.

This module avoids the classes of torch.optim: the first instance in a process imports torch._dynamo, which takes each
worker 2.6 s on two cores, longer than the first rounds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedkd.config import TrainConfig
from fedkd.engine import Job
from fedkd.participation import Batch, Terms
from fedkd.problem import Problem

_sgd = partial(sgd, foreach=True, dampening=0.0, nesterov=False, maximize=False)
_adam = partial(adam, foreach=True, eps=1e-8, amsgrad=False, maximize=False)


class Sgd:
    """Plain SGD with optional momentum and weight decay; lives for one participation."""

    def __init__(self, parameters: Sequence[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        self.parameters, self.lr, self.momentum, self.weight_decay = parameters, lr, momentum, weight_decay
        self._velocity: list[Tensor | None] = [None] * len(parameters)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One update; a parameter without gradient does not change."""
        reached = _reached(self.parameters, gradients)
        velocity = [self._velocity[i] for i in reached]
        parameters, given = [self.parameters[i] for i in reached], list(reached.values())
        _sgd(parameters, given, velocity, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        for i, value in zip(reached, velocity, strict=True):
            self._velocity[i] = value


class Adam:
    """Adam (eps 1e-8) with classical L2 weight decay, on named tensors, in place."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        memory: Mapping[str, Any] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """`memory` is an earlier result of `memory()`: {"step", "mean": named, "square": named}; it does not change."""
        self.names, self.parameters, self.betas = list(parameters), list(parameters.values()), betas
        memory = memory or {"step": 0, "mean": {}, "square": {}}
        self.count = int(memory["step"])
        self._mean = [memory["mean"].get(n, torch.zeros_like(p)).clone() for n, p in parameters.items()]
        self._square = [memory["square"].get(n, torch.zeros_like(p)).clone() for n, p in parameters.items()]

    def memory(self) -> dict[str, Any]:
        """The moments as a value for a State."""
        named = zip(self.names, self._mean, self._square, strict=True)
        means, squares = {}, {}
        for name, mean, square in named:
            means[name], squares[name] = (m.clone(memory_format=torch.contiguous_format) for m in (mean, square))
        return {"step": self.count, "mean": means, "square": squares}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float, weight_decay: float = 0.0) -> None:
        """One update; a parameter without gradient, and its moments, do not change (all share one count)."""
        reached = _reached(self.parameters, gradients)
        parameters, mean, square = ([t[i] for i in reached] for t in (self.parameters, self._mean, self._square))
        steps = list(torch.full((len(reached),), float(self.count)).unbind())  # torch counts each parameter's own
        beta1, beta2 = self.betas
        state = list(reached.values()), mean, square, list[Tensor](), steps
        _adam(parameters, *state, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay)
        self.count += 1


class LocalOptimiser:
    """The configured SGD or Adam on named parameters of a client's student, for one participation."""

    def __init__(
        self, config: TrainConfig, learnable: Mapping[str, Tensor], lr: float, memory: Mapping[str, Any] | None = None
    ) -> None:
        """`memory` is the result of `memory()` in the client's last participation, if moments are kept."""
        self.config, self.lr, self.parameters = config, lr, list(learnable.values())
        self._sgd = self._adam = None
        if config.optimiser == "sgd":
            self._sgd = Sgd(self.parameters, lr, config.momentum, config.weight_decay)
        else:
            self._adam = Adam(learnable, memory or None)

    def step(self, loss: Tensor) -> None:
        """One update along the gradient of a scalar; parameters that the loss does not reach do not change."""
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        if self.config.clip is not None:
            gradients = clipped(gradients, self.config.clip)
        if self._sgd is not None:
            self._sgd.step(gradients)
        elif self._adam is not None:
            self._adam.step(gradients, self.lr, self.config.weight_decay)

    def memory(self) -> dict[str, Any]:
        """Adam's moments, if the configuration keeps them; else nothing."""
        return self._adam.memory() if self._adam is not None and self.config.moments == "keep" else {}


def clipped(gradients: Sequence[Tensor | None], most: float) -> tuple[Tensor | None, ...]:
    """The gradients, scaled down together if their common norm is above `most`."""
    given = [gradient for gradient in gradients if gradient is not None]
    norm = torch.stack([gradient.norm() for gradient in given]).norm()
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    return tuple(None if gradient is None else gradient * scale for gradient in gradients)


def _reached(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """The existing gradients, by index."""
    return {i: g for i, (_, g) in enumerate(zip(parameters, gradients, strict=True)) if g is not None}


def minimise(optimiser: LocalOptimiser, batches: Iterable[Batch], terms: Terms) -> dict[str, float]:
    """One update per batch, along the sum of its terms. Returns the mean of each term over the steps."""
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        loss = None
        for name, value in terms(batch):
            loss = value if loss is None else loss + value
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        if loss is None:
            raise ValueError("the client's terms yielded nothing: there is no loss")
        optimiser.step(loss)
        count += 1
    return {name: float(value) / count for name, value in sums.items()}


def learning_rate(problem: Problem, job: Job) -> float:
    """lr by the schedule at round t, counted from 0: this round, or the client's last round (FedGen's code).

    Exponential: lr * decay^t. The `warmup` first rounds have 1, 2, ... of warmup + 1 equal steps to lr; t then starts.
    """
    config = problem.train
    t = (job.round if config.lr_clock == "round" else max(job.state.last_round, 1)) - 1 - config.warmup
    if t < 0:
        return config.lr * (t + config.warmup + 1) / (config.warmup + 1)
    if config.schedule == "exponential":
        return config.lr * config.lr_decay**t
    if config.schedule == "step":
        return config.lr * config.lr_decay ** (t // config.lr_step)
    if config.schedule == "cosine":  # SGDR without restarts: Loshchilov and Hutter, ICLR 2017, equation 5
        return config.lr * (1 + math.cos(math.pi * t / (problem.rounds - config.warmup))) / 2
    return config.lr
