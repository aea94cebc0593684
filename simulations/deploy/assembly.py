"""Assemble deployed runs: the server has no client data, a device only its own."""

from dataclasses import replace
from pathlib import Path

import torch

from fedkd import seeds
from fedkd.config import RunConfig
from fedkd.configuration import naming
from fedkd.data import own, public_pack
from fedkd.data.public_pack import Public
from fedkd.data.samples import Dataset
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment
from fedkd.problem import Problem
from fedkd.strategy import Strategy
from fedkd.training import probing
from fedkd.training.site import LocalSite
from fedkd.wrappers import privacy
from simulations import assemble, cautions
from simulations.assemble import Assembly
from simulations.deploy.noise_record import drawn_once


def server(config: RunConfig, public: Path | None) -> Assembly:
    """The server's side: no training data, its own pooled test set, and the file of public images.

    Raises ConfigError for settings that only a simulation supports, DataError for files that are missing or damaged.
    """
    _refuse(config)
    dataset = own.load_server(config.data)
    shared = public_pack.read(public, config) if public is not None else Public()
    pair = assemble.halves(config.strategy)
    if pair[0].pools_data:
        what = f"strategy '{naming.of(config.strategy)}' trains on pooled data, but data stay on the devices"
        raise ConfigError(what, where="strategy", mend="run it in simulation: fedkd run")
    problem = _problem(config, dataset, shared)
    strategy, client = assemble.match(pair, config, problem)
    strategy.init(problem, seeds.stream(config.seed, "server"))
    available = _num_pooled(problem, strategy, len(dataset.test))
    num_probes = probing.num_images(config, dataset.shape, len(dataset.labels), len(dataset.test))
    probe = assemble.draw_probe(config.seed, len(dataset.test), num_probes)
    site = LocalSite(problem, client, dataset.train, dataset.test, train_index={}, test_index={})
    labels = dataset.test.y
    experiment = Experiment(config, problem, strategy, available, labels, probe_labels=labels[probe])
    return Assembly(experiment, site, None, dataset, tuple(cautions.of(pair, config, problem)))


def device(config: RunConfig, data: Path, client: int, state: Path | None = None) -> LocalSite:
    """A device's side: its own samples, and the public pack beside them, if any.

    `state`: the folder with the record of the noise that the device has sent. Raises ConfigError, DataError, and
    EngineError if noise is configured and OpenDP is not installed.
    """
    _refuse(config)
    dataset = own.load_device(config.data, data, config.seed, client)
    pack = data / public_pack.NAME if data.is_dir() else data.parent / public_pack.NAME
    shared = public_pack.read(pack, config)
    problem = _problem(config, dataset, shared)
    _, half = assemble.match(assemble.halves(config.strategy), config, problem, _noise(config, state))
    test, common = dataset.test, None
    if shared.common is not None:
        common = torch.arange(len(test), len(test) + len(shared.common))
        test = replace(test, x=torch.cat([test.x, shared.common.x]), y=torch.cat([test.y, shared.common.y]))
    return LocalSite(
        problem=problem,
        client=half,
        train=dataset.train,
        test=test,
        train_index={client: torch.arange(len(dataset.train))},
        test_index={client: torch.arange(len(dataset.test))},
        probe=shared.probe,
        common=common,
    )


def _noise(config: RunConfig, state: Path | None) -> privacy.Draw:
    """The source of a device's noise; unused if none is configured."""
    if config.privacy.label_epsilon is None:
        return privacy.simulated
    draw = privacy.secret()
    return draw if state is None else drawn_once(draw, state)


def _refuse(config: RunConfig) -> None:
    """Raises ConfigError for settings that need all data in one place."""
    if config.students.mix is not None and config.students.assign == "size":
        what = "students.assign = size needs the exact sizes of all clients' data, which stay on the devices"
        mend = "name one student per device: students='[mlp, lenet5, ...]'"
        raise ConfigError(what, where="students.assign", mend=mend)
    if config.students.weights is not None:
        what = "students.weights names a file on this machine, which the devices do not have"
        raise ConfigError(what, where="students.weights", mend="start from weights of the seed: leave it out")
    if config.evaluate.on == "validation":
        what = "evaluate.on = validation holds samples out of a simulation's clients"
        mend = "choose hyper-parameters in simulation: fedkd compare --tune"
        raise ConfigError(what, where="evaluate.on", mend=mend)


def _problem(config: RunConfig, dataset: Dataset, shared: Public) -> Problem:
    return assemble.build_problem(config, dataset.shape, len(dataset.labels), (), shared.proxy)


def _num_pooled(problem: Problem, strategy: Strategy, available: int) -> int:
    """The number of pooled test images that a global student can be evaluated on.

    Zero if BatchNorm statistics stay with the clients: the server cannot average statistics that stay on devices.
    """
    served = strategy.evaluation_payload(strategy.init(problem, seeds.stream(problem.seed, "server")), None)
    missing = served is not None and set(problem.statistic_names) - set(served.weights or {})
    return 0 if missing and problem.statistics == "local" else available
