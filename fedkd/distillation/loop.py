"""Distillation at a server: trains a generator of latents or images against the clients' replies."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkd.models.generators import learnable
from fedkd.payload import Weights
from fedkd.training.optimisers import Adaptive

RECENT = 10  # last steps, whose terms are reported


@dataclass(frozen=True)
class Optimised:
    """A generator after training, its optimiser's memory, and the terms of its last steps."""

    generator: Weights
    adam: Mapping[str, Any]
    recent: Sequence[Mapping[str, Tensor]]

    def means(self) -> dict[str, float]:
        """Mean of each term over these steps."""
        names = self.recent[0] if self.recent else ()
        return {name: float(torch.stack([terms[name] for terms in self.recent]).mean()) for name in names}


def optimise(
    generator: Weights,
    adam: Mapping[str, Any],
    terms: Callable[[Weights], Iterator[tuple[str, Tensor]]],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    skip_non_finite: bool = False,
) -> Optimised:
    """Adam on a copy of the generator, except for its running statistics, along the sum of its terms.

    A step without terms ends the loop, because all are switched off. `skip_non_finite` skips non-finite losses.
    """
    entries = {name: entry.clone() for name, entry in generator.items()}
    beta1, beta2 = betas
    trained = {name: entries[name].requires_grad_() for name in learnable(entries)}
    optimiser = Adaptive(trained, adam, beta1=beta1, beta2=beta2)
    recent: deque[Mapping[str, Tensor]] = deque(maxlen=RECENT)
    for _ in range(steps):
        losses = dict(terms(entries))
        if not losses:
            break
        loss = torch.stack(list(losses.values())).sum()
        if skip_non_finite and not bool(loss.isfinite()):
            continue
        optimiser.step(torch.autograd.grad(loss, optimiser.parameters), lr, weight_decay)
        recent.append({name: value.detach() for name, value in losses.items()})
    return Optimised({name: entry.detach() for name, entry in entries.items()}, optimiser.memory(), recent)
