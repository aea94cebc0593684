"""How many probe images students are compared on: as many as cost little beside local training."""

import torch
from torch import nn

from fedkd.config import RunConfig
from fedkd.models import students
from fedkd.student import materialise

FREE = 1_000_000_000  # multiplications of a probe that nobody feels: about 20 ms of a core
TRAINED = 3  # training images of a participation for each probe image beyond these: a step costs three forward passes


def num_images(config: RunConfig, shape: students.Shape, classes: int, available: int) -> int:
    """`evaluate.probe`, but for a large student that trains for few steps no more than a ninth of its training costs.

    From configuration and shapes alone, so that simulations and devices agree. Whole epochs bound nothing: how many
    images they are is known to the client.
    """
    asked, train = min(config.evaluate.probe, available), config.train
    if train.steps is None or asked * TRAINED <= train.batch * train.steps:
        return asked
    names = {config.students.name, *(config.students.mix or ())}
    dearest = max(multiplications(name, shape, classes) for name in names)
    return min(asked, max(1, FREE // dearest, train.batch * train.steps // TRAINED))


def multiplications(name: str, shape: students.Shape, classes: int) -> int:
    """Of one image's way through a student's convolutions and linear layers."""
    counts = list[int]()

    def add(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(layer.weight, torch.Tensor)
        counts.append(out.numel() * layer.weight[0].numel())

    with torch.device("meta"):
        student = students.make_any(name, shape, classes)
    materialise(student)  # a pass on the meta device imports two seconds of torch
    for layer in student.eval().modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.inference_mode():
        student(torch.zeros(1, *shape))
    return sum(counts)
