"""SGD and Adam over lists of tensors, equal to torch.optim's with foreach=True.

torch.optim is not used because making the first optimiser of a process imports torch._dynamo: 2.6 s on two cores, in
each worker, more than the first rounds take. Adam's memory is besides a value that a State can hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd.config import TrainConfig


class Sgd:
    """Plain SGD with optional momentum and weight decay; lives for one participation."""

    def __init__(self, parameters: Sequence[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        self.parameters, self.lr, self.momentum, self.weight_decay = parameters, lr, momentum, weight_decay
        self._velocity: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One update; a parameter without gradient stays as it is."""
        given = {i: (p, g) for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)) if g is not None}
        parameters, updates = [p for p, _ in given.values()], [g for _, g in given.values()]
        if self.weight_decay:
            updates = list(torch._foreach_add(updates, [p.detach() for p in parameters], alpha=self.weight_decay))
        if self.momentum:
            velocity = [self._velocity.setdefault(i, torch.zeros_like(g)) for i, (_, g) in given.items()]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, updates)
            updates = velocity
        torch._foreach_add_(parameters, updates, alpha=-self.lr)


class Adam:
    """Adam (eps 1e-8) with classical L2 weight decay, on named tensors, in place."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        memory: Mapping[str, Any] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """`memory` is what `memory()` gave earlier: {"step", "mean": named, "square": named}; it is not changed."""
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
            means[name], squares[name] = (of.clone(memory_format=torch.contiguous_format) for of in (mean, square))
        return {"step": self.count, "mean": means, "square": squares}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float, weight_decay: float = 0.0) -> None:
        """One update; a parameter without gradient, and its moments, stay as they are (the count is common to all)."""
        self.count += 1
        given = [i for i, gradient in enumerate(gradients) if gradient is not None]
        parameters, mean, square = ([of[i] for i in given] for of in (self.parameters, self._mean, self._square))
        updates = [gradient for gradient in gradients if gradient is not None]
        if weight_decay:
            updates = list(torch._foreach_add(updates, [p.detach() for p in parameters], alpha=weight_decay))
        first, second = self.betas
        torch._foreach_lerp_(mean, updates, 1 - first)
        torch._foreach_mul_(square, second)
        torch._foreach_addcmul_(square, updates, updates, 1 - second)
        denominators = torch._foreach_sqrt(square)
        torch._foreach_div_(denominators, (1 - second**self.count) ** 0.5)
        torch._foreach_add_(denominators, 1e-8)
        torch._foreach_addcdiv_(parameters, mean, denominators, -lr / (1 - first**self.count))


class Descent:
    """SGD or Adam, as a configuration says, on named parameters of a client's student, over one participation."""

    def __init__(
        self, config: TrainConfig, learnable: Mapping[str, Tensor], lr: float, memory: Mapping[str, Any] | None = None
    ) -> None:
        """`memory` is what `memory()` gave in an earlier participation, where moments are kept."""
        self.config, self.lr, self.parameters = config, lr, list(learnable.values())
        self._sgd = self._adam = None
        if config.optimiser == "sgd":
            self._sgd = Sgd(self.parameters, lr, config.momentum, config.weight_decay)
        else:
            self._adam = Adam(learnable, memory or None)

    def descend(self, loss: Tensor) -> None:
        """One update along the gradient of a scalar; parameters that the loss does not reach stay as they are."""
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        if self.config.clip is not None:
            gradients = clipped(gradients, self.config.clip)
        if self._sgd is not None:
            self._sgd.step(gradients)
        elif self._adam is not None:
            self._adam.step(gradients, self.lr, self.config.weight_decay)

    def memory(self) -> dict[str, Any]:
        """Adam's moments, if they are to be kept; else nothing."""
        return self._adam.memory() if self._adam is not None and self.config.moments == "keep" else {}


def clipped(gradients: Sequence[Tensor | None], most: float) -> tuple[Tensor | None, ...]:
    """The gradients, scaled down together if their common norm is above `most`."""
    given = [gradient for gradient in gradients if gradient is not None]
    norm = torch.stack([gradient.norm() for gradient in given]).norm()
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    return tuple(None if gradient is None else gradient * scale for gradient in gradients)
