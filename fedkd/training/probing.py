"""The number of probe images for comparing students: so many that they cost little beside local training."""

import torch
from torch import nn

from fedkd.config import RunConfig
from fedkd.data import samples
from fedkd.models import students
from fedkd.models.layers import Shape
from fedkd.student import materialise

FREE = 1_000_000_000  # multiplications that every probe may take: about 20 ms of a core
TRAINED = 3  # beyond FREE, training images per probe image: a training step costs three forward passes


def num_images(config: RunConfig, shape: Shape, classes: int, available: int, vocabulary: int = 0) -> int:
    """`evaluate.probe`, reduced for a large student with few steps to a ninth of its training's cost.

    The number depends on configuration and shapes alone, so that simulations and devices agree. Whole epochs give no
    bound: only the client knows how many images they have.
    """
    asked, train = min(config.evaluate.probe, available), config.train
    if train.steps is None or asked * TRAINED <= train.batch * train.steps:
        return asked
    names = {config.students.name, *(config.students.mix or ())}
    dearest = max(multiplications(name, shape, classes, vocabulary) for name in names)
    return min(asked, max(1, FREE // dearest, train.batch * train.steps // TRAINED))


def multiplications(name: str, shape: Shape, classes: int, vocabulary: int = 0) -> int:
    """Multiplications of one sample's pass through a student's convolutions and linear layers."""
    counts = list[int]()

    def add(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(layer.weight, torch.Tensor)
        counts.append(out.numel() * layer.weight[0].numel())

    with torch.device("meta"):
        student = students.make_any(name, shape, classes, vocabulary=vocabulary)
    materialise(student)  # a pass on the meta device takes two seconds of imports
    for layer in student.eval().modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.inference_mode():
        student(samples.blank(1, shape, vocabulary))
    return sum(counts)
