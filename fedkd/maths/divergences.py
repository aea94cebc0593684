"""Divergences between a teacher and a student: pure functions of logits. B samples, C classes.

Divergences of distributions are means over the batch, in nats; they are 0 if and only if both logits are equal up to a
constant per sample. The functions do not detach the teacher: pass it without gradient.
"""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

_SMALLEST = 1e-12  # smallest probability in a logarithm: a teacher's may be exactly 0


def l1(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """Mean absolute difference of logits over samples and classes."""
    return (student_BC - teacher_BC).abs().mean()


def mse(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """Mean squared difference of logits over samples and classes.

    For logits of mean 0 per sample, half of it is the limit of losses.softened_kl at a high temperature.
    """
    return (student_BC - teacher_BC).square().mean()


def between(kind: str, p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """A divergence of distributions by name: the teacher's probabilities, the logarithm of the student's."""
    return _OF_PROBABILITIES[kind](p_BC, log_q_BC)


def _forward(p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    return F.kl_div(log_q_BC, p_BC, reduction="batchmean")


def _reverse(p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    return F.kl_div(p_BC.clamp(min=_SMALLEST).log(), log_q_BC, reduction="batchmean", log_target=True)


def _js(p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    log_m_BC = ((p_BC + log_q_BC.exp()) / 2).clamp(min=_SMALLEST).log()
    return (_forward(p_BC, log_m_BC) + F.kl_div(log_m_BC, log_q_BC, reduction="batchmean", log_target=True)) / 2


def _symmetric(p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    return (_forward(p_BC, log_q_BC) + _reverse(p_BC, log_q_BC)) / 2


_OF_PROBABILITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": _forward,
    "reverse_kl": _reverse,
    "js": _js,
    "symmetric": _symmetric,
}
OF_LOGITS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "mse": mse}  # have no probabilities in them
