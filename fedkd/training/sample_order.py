"""Passes over a client's training samples: their order is the same for any worker and after any resume."""

import torch
from torch import Tensor

from fedkd import seeds
from fedkd.config import TrainConfig
from fedkd.engine import Job


def draw_batches(seed: int, config: TrainConfig, job: Job, num_samples: int) -> tuple[list[Tensor], int, int]:
    """Index batches of one participation, and the epoch and position where the next begins.

    Passes continue where the last participation stopped; the short batch at the end of a pass is kept. The order in
    epoch e depends on (seed, client, e) alone, so all strategies see the same batches.
    """
    epoch, position = job.state.epoch, job.state.position
    if config.steps is None:
        epoch, position = (epoch + 1, 0) if position else (epoch, 0)
    total = config.steps if config.steps is not None else config.epochs * -(-num_samples // config.batch)
    batches: list[Tensor] = []
    pass_over = None
    for _ in range(total):
        if pass_over is None:
            pass_over = pass_order(seed, job.client, epoch, num_samples)
        batches.append(pass_over[position : position + config.batch])
        position += config.batch
        if position >= num_samples:
            epoch, position, pass_over = epoch + 1, 0, None
    return batches, epoch, position


def pass_order(seed: int, client: int, epoch: int, num_samples: int) -> Tensor:
    """The order in which a client passes over its training samples in one epoch, (num_samples,) int64."""
    return torch.randperm(num_samples, generator=seeds.stream(seed, "batches", round=epoch, client=client).torch())
