"""SGD and Adam over lists of tensors, equal to torch.optim's with foreach=True.

torch.optim is not used because making the first optimiser of a process imports torch._dynamo: 2.6 s on two cores, in
each worker, more than the first rounds take. Adam's memory is besides a value that a State can hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


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
    """Adam(0.9, 0.999, eps 1e-8) with classical L2 weight decay, on named tensors, in place."""

    def __init__(self, parameters: Mapping[str, Tensor], memory: Mapping[str, Any] | None = None) -> None:
        """`memory` is what `memory()` gave earlier: {"step", "mean": named, "square": named}; it is not changed."""
        self.names, self.parameters = list(parameters), list(parameters.values())
        memory = memory or {"step": 0, "mean": {}, "square": {}}
        self.count = int(memory["step"])
        self._mean = [memory["mean"].get(n, torch.zeros_like(p)).clone() for n, p in parameters.items()]
        self._square = [memory["square"].get(n, torch.zeros_like(p)).clone() for n, p in parameters.items()]

    def memory(self) -> dict[str, Any]:
        """The moments as a value for a State."""
        named = zip(self.names, self._mean, self._square, strict=True)
        means, squares = {}, {}
        for name, mean, square in named:
            means[name], squares[name] = mean.clone(), square.clone()
        return {"step": self.count, "mean": means, "square": squares}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        """One update of all parameters."""
        self.count += 1
        updates = list(gradients)
        if weight_decay:
            updates = list(torch._foreach_add(updates, [p.detach() for p in self.parameters], alpha=weight_decay))
        torch._foreach_lerp_(self._mean, updates, 1 - 0.9)
        torch._foreach_mul_(self._square, 0.999)
        torch._foreach_addcmul_(self._square, updates, updates, 1 - 0.999)
        denominators = torch._foreach_sqrt(self._square)
        torch._foreach_div_(denominators, (1 - 0.999**self.count) ** 0.5)
        torch._foreach_add_(denominators, 1e-8)
        torch._foreach_addcdiv_(self.parameters, self._mean, denominators, -lr / (1 - 0.9**self.count))
