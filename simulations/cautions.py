"""Notes for the user before the first round: settings that switch a method off, and settings without effect."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedkd.client import Client
from fedkd.config import RunConfig
from fedkd.configuration import naming
from fedkd.parts import attach
from fedkd.problem import Problem
from fedkd.strategy import Strategy

_SHOWN = 10  # class names per sentence


def of(pair: tuple[Strategy[Any], Client], config: RunConfig, problem: Problem) -> Iterator[str]:
    """Sentences about a configuration; each half of the algorithm adds its own."""
    strategy, client = pair
    size, clients = config.evaluate.clients, config.clients
    if 0 < size < clients:
        yield f"accuracy per client covers a fixed sample of {size} of {clients} clients (evaluate.clients)"
    yield from dict.fromkeys((*strategy.notes(problem), *client.notes(problem)))  # once for a key of both halves
    yield from _parts(config)
    yield from _training(config)
    if problem.proxy is not None and strategy.proxy == "no":
        name = naming.of(config.strategy)
        yield f"proxy = {config.proxy.name} has no effect: strategy '{name}' uses no public set"
    if problem.statistics == "local" and not any(problem.of(k).statistic_names for k in range(problem.clients)):
        yield "students.statistics = local has no effect: the student has no BatchNorm statistics"


def _parts(config: RunConfig) -> Iterator[str]:
    parts = attach.make(config.part, config.seed)
    teachers = {part.teacher for part in parts if part.name in config.parts}
    for part in parts:
        if part.name in config.parts and not part.is_on:
            yield f"part.{part.name}.weight = 0 switches off the part that `parts` names"
        if part.name not in (*config.parts, *teachers) and part.config != type(part.config)():
            yield f"part.{part.name} has no effect unless `parts` names it: add parts=[{part.name}]"


def _training(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.steps is not None and train.epochs != 1:
        yield f"train.epochs = {train.epochs} has no effect while train.steps = {train.steps}: add train.steps=null"
    if train.schedule in ("constant", "cosine") and train.lr_decay != 1:
        yield f"train.lr_decay = {train.lr_decay:g} has no effect: train.schedule is {train.schedule}"
    if train.schedule == "step" and train.lr_decay == 1:
        yield "train.schedule = step has no effect while train.lr_decay = 1: add train.lr_decay=0.1"
    unused = f"has no effect: train.optimiser is {train.optimiser}"
    if train.momentum and train.optimiser not in ("sgd", "rmsprop"):
        yield f"train.momentum = {train.momentum:g} {unused}; only sgd and rmsprop use it"
    if train.nesterov and train.optimiser != "sgd":
        yield f"train.nesterov {unused}; only sgd uses it"
    if (train.beta1, train.beta2) != (0.9, 0.999) and train.optimiser in ("sgd", "rmsprop", "adagrad", "adadelta"):
        yield f"train.beta1 and train.beta2 have no effect: train.optimiser is {train.optimiser}"
    if train.optimiser == "sgd" and train.moments == "keep":
        yield f"train.moments = keep {unused}, whose momentum restarts in each participation"


def absent_labels(counts: np.ndarray, labels: Sequence[str]) -> Iterator[str]:
    """The classes that no client holds; `counts` (clients, classes) are numbers of training samples."""
    absent = [labels[label] for label in np.flatnonzero(counts.sum(0) == 0).tolist()]
    if absent:
        names = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
        yield f"no client holds a training sample of {len(absent)} of {len(labels)} classes: {names}"
