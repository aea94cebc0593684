"""Optimisers over lists of tensors: torch.optim's functions, with memory as a value that a State can hold.

This module avoids the classes of torch.optim: the first instance in a process imports torch._dynamo, which takes each
worker 2.6 s on two cores, longer than the first rounds.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adadelta import adadelta
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamax import adamax
from torch.optim.adamw import adamw
from torch.optim.nadam import nadam
from torch.optim.radam import radam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from fedkd.config import TrainConfig
from fedkd.engine import Job
from fedkd.participation import Batch, Terms
from fedkd.problem import Problem

_sgd = partial(sgd, foreach=True, dampening=0.0, maximize=False)


class Sgd:
    """Plain SGD with optional momentum and weight decay; lives for one participation."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        self.parameters, self.lr = parameters, lr
        self._options: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self._velocity: list[Tensor | None] = [None] * len(parameters)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One update; a parameter without gradient does not change."""
        reached = _reached(self.parameters, gradients)
        velocity = [self._velocity[i] for i in reached]
        parameters, given = [self.parameters[i] for i in reached], list(reached.values())
        _sgd(parameters, given, velocity, lr=self.lr, **self._options)
        for i, value in zip(reached, velocity, strict=True):
            self._velocity[i] = value


@dataclass(frozen=True)
class Rule:
    """How to call an adaptive optimiser of torch."""

    function: Callable[..., None]
    memory: Mapping[str, str]  # our name of each list that it changes, to torch's
    unused: tuple[str, ...] = ()  # lists that it demands and leaves alone
    keys: tuple[str, ...] = ()  # of `train`, which it takes under the same name
    fixed: Mapping[str, Any] = field(default_factory=dict)  # torch's defaults, which the functions do not have


_MEANS = {"mean": "exp_avgs", "square": "exp_avg_sqs"}
_BETAS = ("beta1", "beta2")
_ADAM: Any = {
    "memory": _MEANS,
    "unused": ("max_exp_avg_sqs",),
    "keys": _BETAS,
    "fixed": {"eps": 1e-8, "amsgrad": False, "maximize": False},
}
RULES = {
    "adam": Rule(adam, **_ADAM),
    "adamw": Rule(adamw, **_ADAM),
    "adamax": Rule(adamax, {"mean": "exp_avgs", "largest": "exp_infs"}, keys=_BETAS, fixed={"eps": 1e-8}),
    "nadam": Rule(
        nadam, {**_MEANS, "product": "mu_products"}, keys=_BETAS, fixed={"eps": 1e-8, "momentum_decay": 0.004}
    ),
    "radam": Rule(radam, _MEANS, keys=_BETAS, fixed={"eps": 1e-8}),
    "rmsprop": Rule(
        rmsprop,
        {"square": "square_avgs", "velocity": "momentum_buffer_list"},
        ("grad_avgs",),
        ("momentum",),
        {"alpha": 0.99, "eps": 1e-8, "centered": False},
    ),
    "adagrad": Rule(adagrad, {"sum": "state_sums"}, fixed={"eps": 1e-10, "lr_decay": 0.0, "maximize": False}),
    "adadelta": Rule(
        adadelta,
        {"square": "square_avgs", "change": "acc_deltas"},
        fixed={"rho": 0.9, "eps": 1e-6, "maximize": False},
    ),
}


class Adaptive:
    """Adam (eps 1e-8) or another adaptive optimiser of torch, on named tensors, in place.

    Weight decay is classical L2, but for adamw, where it shrinks the weights themselves.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], memory: Mapping[str, Any] | None = None, name: str = "adam", **keys: Any
    ) -> None:
        """`memory` is an earlier result of `memory()`: {"step", "mean": named, "square": named}; it does not change.

        `keys`: those of the rule; beta1 and beta2 are 0.9 and 0.999, momentum is 0 by default.
        """
        self.names, self.parameters, self.rule = list(parameters), list(parameters.values()), RULES[name]
        given = {"beta1": 0.9, "beta2": 0.999, "momentum": 0.0} | keys
        self._options: dict[str, Any] = {**self.rule.fixed, **{key: given[key] for key in self.rule.keys}}
        memory = memory or {}
        self.count = int(memory.get("step", 0))
        self._memory = {
            kind: [memory.get(kind, {}).get(n, _start(kind, p)).clone() for n, p in parameters.items()]
            for kind in self.rule.memory
        }

    def memory(self) -> dict[str, Any]:
        """The moments as a value for a State."""
        kept: dict[str, Any] = {"step": self.count}
        for kind, values in self._memory.items():
            named = zip(self.names, values, strict=True)
            kept[kind] = {name: value.clone(memory_format=torch.contiguous_format) for name, value in named}
        return kept

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float, weight_decay: float = 0.0) -> None:
        """One update; a parameter without gradient, and its moments, do not change (all share one count)."""
        reached = _reached(self.parameters, gradients)
        parameters = [self.parameters[i] for i in reached]
        lists = {self.rule.memory[kind]: [values[i] for i in reached] for kind, values in self._memory.items()}
        lists |= {name: [] for name in self.rule.unused}
        steps = list(torch.full((len(reached),), float(self.count)).unbind())  # torch counts each parameter's own
        self.rule.function(
            parameters,
            list(reached.values()),
            state_steps=steps,
            foreach=True,
            lr=lr,
            weight_decay=weight_decay,
            **lists,
            **self._options,
        )
        self.count += 1


def _start(kind: str, parameter: Tensor) -> Tensor:
    return torch.ones(()) if kind == "product" else torch.zeros_like(parameter)


class LocalOptimiser:
    """The configured optimiser on named parameters of a client's student, for one participation."""

    def __init__(
        self, config: TrainConfig, learnable: Mapping[str, Tensor], lr: float, memory: Mapping[str, Any] | None = None
    ) -> None:
        """`memory` is the result of `memory()` in the client's last participation, if moments are kept."""
        self.config, self.lr, self.parameters = config, lr, list(learnable.values())
        self._sgd = self._adaptive = None
        if config.optimiser == "sgd":
            self._sgd = Sgd(self.parameters, lr, config.momentum, config.weight_decay, config.nesterov)
        else:
            keys = {"beta1": config.beta1, "beta2": config.beta2, "momentum": config.momentum}
            self._adaptive = Adaptive(learnable, memory, config.optimiser, **keys)

    def step(self, loss: Tensor) -> None:
        """One update along the gradient of a scalar; parameters that the loss does not reach do not change."""
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        if self.config.clip is not None:
            gradients = clipped(gradients, self.config.clip)
        if self._sgd is not None:
            self._sgd.step(gradients)
        elif self._adaptive is not None:
            self._adaptive.step(gradients, self.lr, self.config.weight_decay)

    def memory(self) -> dict[str, Any]:
        """The moments of an adaptive optimiser, if the configuration keeps them; else nothing."""
        return self._adaptive.memory() if self._adaptive is not None and self.config.moments == "keep" else {}


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
