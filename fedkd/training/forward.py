"""Forward passes over any number of images, in parts of fixed size, because float sums depend on the size."""

import torch
from torch import Tensor

from fedkd.student import Student

EVALUATION_BATCH = 250  # larger batches exceed the cache


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


POOLED_PART = 2500  # samples of the pooled test set per job


def pooled_part(part: int, num_samples: int) -> Tensor:
    """The indices of one part of the pooled test set."""
    return torch.arange(part * POOLED_PART, min((part + 1) * POOLED_PART, num_samples))
