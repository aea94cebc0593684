"""Assemble: the only place where names become objects and where the two halves of an algorithm are matched."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch

from fedkd import plugins, seeds
from fedkd.client import Client
from fedkd.config import RunConfig
from fedkd.data import partition, sources
from fedkd.data.partition import Partition
from fedkd.data.samples import Dataset
from fedkd.errors import ConfigError
from fedkd.models import students
from fedkd.problem import Problem
from fedkd.rounds import Experiment
from fedkd.strategy import Strategy
from fedkd.training import Site


@dataclass(frozen=True)
class Assembly:
    """A configuration made real: what the rounds need, where jobs run, and who holds what."""

    experiment: Experiment
    site: Site
    partition: Partition
    dataset: Dataset


def assemble(config: RunConfig) -> Assembly:
    """Objects from names. Everything that cannot work fails here, before a round is played.

    Raises ConfigError (partition, student, halves that do not fit) and DataError (missing or damaged files).
    """
    strategy, client = halves(config.strategy)
    dataset = sources.load(config.data)
    held = split(config, dataset)
    problem = pose(config, dataset.shape, len(dataset.labels))
    strategy.init(problem, seeds.stream(config.seed, "server"))  # an algorithm that does not fit says so now
    probe = min(config.evaluate.probe, len(dataset.test))
    site = Site(
        problem=problem,
        client=client,
        train=dataset.train,
        test=dataset.test,
        train_index={k: torch.tensor(index) for k, index in enumerate(held.train)},
        test_index={k: torch.tensor(index) for k, index in enumerate(held.test)},
        probe=dataset.test.take(draw_probe(config.seed, len(dataset.test), probe))[0] if probe else None,
    )
    return Assembly(Experiment(config, problem, strategy, len(dataset.test)), site, held, dataset)


def split(config: RunConfig, dataset: Dataset) -> Partition:
    """Who holds what of a data set. Raises ConfigError if the recipe cannot be followed."""
    return partition.split(
        partition.RECIPES[config.partition["name"]](**config.partition),
        dataset.train.y.numpy(),
        dataset.test.y.numpy(),
        config.clients,
        len(dataset.labels),
        seeds.stream(config.seed, "partition").numpy(),
    )


def pose(config: RunConfig, shape: tuple[int, int, int], classes: int) -> Problem:
    """The problem that a configuration poses on data of a shape. Raises ConfigError if the student does not fit."""
    chosen = config.students
    make = partial(students.make, chosen.name, shape, classes, chosen.norm)
    with torch.device("meta"):
        make()
    return Problem(
        seed=config.seed,
        rounds=config.rounds,
        clients=config.clients,
        classes=classes,
        input_shape=shape,
        make=make,
        statistics=chosen.statistics,
        train=config.train,
    )


def halves(chosen: Mapping[str, Any]) -> tuple[Strategy[Any], Client]:
    """The two halves that a strategy node names, each with its own hyper-parameters, matched in what they exchange."""
    server_class = plugins.strategy(chosen["name"])
    client_class = plugins.client(chosen.get("client", "supervised"))
    if missing := server_class.needs - client_class.sends:
        raise ConfigError(
            f"strategy '{chosen['name']}' needs {', '.join(sorted(missing))}, "
            f"which client '{chosen.get('client')}' does not send",
            where="strategy",
            mend=f"choose a client that sends {', '.join(sorted(server_class.needs))}",
        )
    server = server_class(server_class.Config(**_share(server_class.Config, chosen)))
    return server, client_class(client_class.Config(**_share(client_class.Config, chosen)))


def _share(config_class: type, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a node that one half's Config declares; compose.py has checked that each key belongs to one."""
    return {field.name: chosen[field.name] for field in fields(config_class) if field.name in chosen}


def draw_probe(seed: int, available: int, size: int) -> torch.Tensor:
    """Which test images function drift is measured on."""
    generator = seeds.stream(seed, "probe").torch()
    return torch.randperm(available, generator=generator)[:size].sort().values
