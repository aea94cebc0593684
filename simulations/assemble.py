"""Makes objects from the names in a configuration, and matches the two halves of an algorithm. Nothing else does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd import seeds, starting
from fedkd.client import Client
from fedkd.config import RunConfig, StudentsConfig
from fedkd.configuration import compose, naming, plugins
from fedkd.data import partition, proxy, samples, sources, validation
from fedkd.data.partition import Partition
from fedkd.data.samples import Dataset, Proxy
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment
from fedkd.models import students
from fedkd.parts import attach
from fedkd.payload import Weights
from fedkd.problem import Problem
from fedkd.strategy import Strategy
from fedkd.student import Student
from fedkd.training import augment, probing
from fedkd.training.site import LocalSite
from fedkd.wrappers import privacy
from fedkd.wrappers.per_architecture import Grouped
from simulations import cautions


@dataclass(frozen=True)
class Assembly:
    """The objects of a configuration: what the rounds need, where jobs run, and which client has which samples."""

    experiment: Experiment
    site: LocalSite
    partition: Partition | None  # None: devices hold their own data, of sizes unknown here
    dataset: Dataset
    notes: tuple[str, ...] = ()  # facts for the user before the first round
    warnings: tuple[str, ...] = ()


def assemble(config: RunConfig) -> Assembly:
    """Make objects from names. A configuration that cannot work fails here, before the first round.

    Raises ConfigError (partition, student, halves that do not fit) and DataError (missing or damaged files).
    """
    pair = halves(config.strategy)
    dataset = sources.load(config.data)
    split, public = partition_data(config, dataset)
    if config.evaluate.on == "validation":
        dataset, split = validation.instead_of_test(dataset, split, config.evaluate.validation, config.seed)
    sizes = tuple(map(len, split.train))
    problem = build_problem(config, dataset.shape, len(dataset.labels), sizes, public, dataset.vocabulary)
    strategy, client = match(pair, config, problem)
    strategy.init(problem, seeds.stream(config.seed, "server"))  # an algorithm that does not fit raises here
    num_probes = probing.num_images(config, dataset.shape, len(dataset.labels), len(dataset.test), dataset.vocabulary)
    probe = draw_probe(config.seed, len(dataset.test), num_probes)
    site = LocalSite(
        problem=problem,
        client=client,
        train=dataset.train,
        test=dataset.test,
        train_index={k: torch.tensor(index) for k, index in enumerate(split.train)},
        test_index={k: torch.tensor(index) for k, index in enumerate(split.test)},
        probe=dataset.test.take(probe)[0] if len(probe) else None,
        common=draw_common(config.seed, len(dataset.test), config.evaluate.common),
    )
    label_counts = split.label_counts(dataset.train.y.numpy())
    counts = torch.from_numpy(label_counts.astype("float64"))
    if strategy.pools_data:
        site = replace(site, train_index={**site.train_index, 0: torch.cat(list(site.train_index.values()))})
        counts[0] = counts.sum(0)
    experiment = Experiment(
        config,
        problem,
        strategy,
        len(dataset.test),
        pooled_labels=dataset.test.y,
        probe_labels=dataset.test.y[probe],
        label_distributions=counts / counts.sum(1, keepdim=True),
        num_tests=tuple(map(len, split.test)),
        personal_predictor=client.personal_predictor,
        sizes=tuple(len(site.train_index[client]) for client in range(config.clients)),
    )
    absent = cautions.absent_labels(label_counts, dataset.labels)
    notes = tuple(filter(None, (split.untested, *cautions.of(pair, config, problem))))
    return Assembly(experiment, site, split, dataset, notes, tuple(absent))


def partition_data(config: RunConfig, dataset: Dataset) -> tuple[Partition, Proxy | None]:
    """The partition of a data set without its public set, and that set. Raises ConfigError if a recipe cannot work."""
    held_out = proxy.hold_out(config, dataset)
    split = split_data(config, dataset, held_out)
    return split, proxy.load(config, dataset, split, held_out)


def split_data(config: RunConfig, dataset: Dataset, held_out: np.ndarray) -> Partition:
    """The partition of the samples that are not `held_out` for the public set. Raises ConfigError."""
    return partition.split(
        partition.known()[config.partition["name"]](**config.partition),
        dataset.train.y.numpy(),
        dataset.test.y.numpy(),
        config.clients,
        len(dataset.labels),
        seeds.stream(config.seed, "partition").numpy(),
        np.setdiff1d(np.arange(len(dataset.train)), held_out),
        dataset.users,
    )


def build_problem(
    config: RunConfig,
    shape: tuple[int, ...],
    classes: int,
    sizes: tuple[int, ...] = (),
    public: Proxy | None = None,
    vocabulary: int = 0,
) -> Problem:
    """The problem of a configuration, for data of a shape; `sizes` are the clients' numbers of training samples.

    Raises ConfigError if a student or `train.augment` does not fit.
    """
    augment.check(config.train, shape, vocabulary)
    chosen = config.students
    form = (shape, classes, chosen.norm, chosen.stem, vocabulary)
    make = partial(students.make, chosen.name, *form)
    assigned = students.assign(chosen, sizes, config.clients, seeds.stream(config.seed, "students").numpy())
    mixture = {name: partial(students.make_any, name, *form) for name in dict.fromkeys(assigned)}
    if chosen.train != "all":
        make = partial(starting.frozen, make, chosen.train)
        mixture = {name: partial(starting.frozen, build, chosen.train) for name, build in mixture.items()}
    for name, build in ({chosen.name: make} | mixture).items():
        _try(name, build, samples.blank(2, shape, vocabulary), config.seed)
    return Problem(
        mixture=mixture,
        assigned=assigned,
        common_init=chosen.common_init,
        proxy=public,
        seed=config.seed,
        rounds=config.rounds,
        clients=config.clients,
        classes=classes,
        input_shape=shape,
        vocabulary=vocabulary,
        make=make,
        statistics=chosen.statistics,
        train=config.train,
        given=_given(chosen),
    )


def _given(chosen: StudentsConfig) -> Weights:
    """The entries of the file that students start from; none without one. Raises ConfigError and DataError."""
    if chosen.weights is None:
        return {}
    if chosen.mix:
        mend = "choose one student for all, or leave students.weights out"
        raise ConfigError("a mixture cannot start from one file of entries", where="students.weights", mend=mend)
    return starting.read(Path(chosen.weights).expanduser())


def _try(name: str, build: Callable[[], Student], x: torch.Tensor, seed: int) -> None:
    """Make a student; one of somebody else's code also classifies two samples. Raises ConfigError."""
    with torch.device("meta"):
        made = build()
    if made.draws_itself:
        with seeds.stream(seed, "try").as_global():
            students.check(name, build(), x)


def match(
    pair: tuple[Strategy[Any], Client], config: RunConfig, problem: Problem, draw: privacy.Draw = privacy.simulated
) -> tuple[Strategy[Any], Client]:
    """Both halves of an algorithm, adapted to a problem: to its students, with parts and with privacy.

    `draw` makes the noise of reports. Raises ConfigError if the halves cannot work on the problem.
    """
    strategy = _fit(pair[0], problem, config)
    client = attach.attach(pair[1], config, problem, strategy)
    return strategy, privacy.attach(client, config, problem, draw)


def _fit(strategy: Strategy[Any], problem: Problem, config: RunConfig) -> Strategy[Any]:
    """The strategy for these students: itself, or one instance per architecture.

    Raises ConfigError if it cannot work with mixed students, or if it lacks the public set that it needs.
    """
    name = naming.of(config.strategy)
    if strategy.proxy == "yes" and problem.proxy is None:
        raise ConfigError(
            f"strategy '{name}' needs a public set of samples, and proxy is none",
            where="proxy",
            mend="add proxy=held-out, proxy=unused or another source: fedkd list proxies",
        )
    if not problem.is_mixed or strategy.works_across_students:
        return strategy
    if config.students.mixed == "groups" and not strategy.pools_data:
        return Grouped(strategy)
    halves = {name: compose.node("strategy", name)["name"] for name in compose.options("strategy")}
    able = [name for name, half in halves.items() if plugins.strategy(half).works_across_students]
    why = "trains one student on everybody's data" if strategy.pools_data else "averages weights"
    within = "" if strategy.pools_data else "average within architectures, students.mixed=groups, or "
    raise ConfigError(
        f"strategy '{name}' {why}, so it cannot work with students of different architectures",
        where="students.mix",
        mend=f"{within}choose one of: {', '.join(able)}",
    )


def halves(chosen: Mapping[str, Any]) -> tuple[Strategy[Any], Client]:
    """The two halves that a strategy node names, each with its hyper-parameters.

    Raises ConfigError if the client half does not send what the server half needs.
    """
    server_class = plugins.strategy(chosen["name"])
    client_class = plugins.client(chosen.get("client", "supervised"))
    if missing := server_class.needs - client_class.sends:
        raise ConfigError(
            f"strategy '{naming.of(chosen)}' needs {', '.join(sorted(missing))}, "
            f"which client '{chosen.get('client')}' does not send",
            where="strategy",
            mend=f"choose a client that sends {', '.join(sorted(server_class.needs))}",
        )
    server = server_class(server_class.Config(**_share(server_class.Config, chosen)))
    return server, client_class(client_class.Config(**_share(client_class.Config, chosen)))


def _share(config_class: type, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a node that one half's Config declares; a key that both declare goes to both."""
    return {field.name: chosen[field.name] for field in fields(config_class) if field.name in chosen}


def draw_probe(seed: int, available: int, size: int) -> torch.Tensor:
    """Indices of the test images that measure function drift."""
    return _draw(seed, "probe", available, size)


def draw_common(seed: int, available: int, size: int) -> torch.Tensor:
    """Indices of the test images on which every client's own student is evaluated, if there is no global one."""
    return _draw(seed, "common", available, size)


def _draw(seed: int, name: str, available: int, size: int) -> torch.Tensor:
    return torch.randperm(available, generator=seeds.stream(seed, name).torch())[:size].sort().values
