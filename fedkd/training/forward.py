"""Forward passes over any number of images, in parts whose size is fixed: float sums depend on it."""

import torch
from torch import Tensor

from fedkd.student import Student

EVALUATION_BATCH = 250  # larger batches leave the cache


@torch.no_grad()
def latents(student: Student, x: Tensor) -> Tensor:
    """z (N, d) of a student in eval mode, without gradient, for any number of images."""
    student.eval()
    return torch.cat([student.features(part) for part in x.split(EVALUATION_BATCH)])


@torch.no_grad()
def logits(student: Student, x: Tensor) -> Tensor:
    """Logits (N, C) of a student in eval mode, without gradient, for any number of images."""
    student.eval()
    return torch.cat([student(part) for part in x.split(EVALUATION_BATCH)])


POOLED_PART = 2500  # samples of the pooled test set a job evaluates


def pooled_part(part: int, num_samples: int) -> Tensor:
    """The indices of one part of the pooled test set."""
    return torch.arange(part * POOLED_PART, min((part + 1) * POOLED_PART, num_samples))
