"""The student at the end of a run, from its folder or from an assembly and a state; and its logits."""

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fedkd
from fedkd.config import RunConfig
from fedkd.configuration import naming
from fedkd.engine import ClientId, ClientState, Job
from fedkd.errors import CheckpointError, ConfigError, DataError, RunError
from fedkd.experiment import RunState
from fedkd.models.exported import Exported
from fedkd.models.predictors import Predictor
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.record import checkpoint, ledger
from fedkd.student import Student
from fedkd.training import evaluation
from simulations import assemble
from simulations.assemble import Assembly
from simulations.deploy import memory
from simulations.run import extension, run_folder, runs

LIMIT = 10_000  # held-out samples to check an exported student on


@dataclass(frozen=True)
class Served:
    """A student of a run, as its evaluation used it."""

    assembly: Assembly
    job: Job  # its evaluation
    client: ClientId | None  # None: the global student

    @property
    def name(self) -> str:
        """`global` or `client-3`."""
        return "global" if self.client is None else f"client-{self.client}"

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments of fedkd.models.students.make_any."""
        problem, chosen = self.assembly.experiment.problem, self.assembly.experiment.config.students
        name = problem.architecture(self.client) or chosen.name
        form = {"name": name, "shape": problem.input_shape, "classes": problem.classes, "norm": chosen.norm}
        more = {"stem": chosen.stem} if chosen.stem != "standard" else {}
        return form | more | ({"vocabulary": problem.vocabulary} if problem.vocabulary else {})

    @property
    def stored(self) -> tuple[str, str]:
        """The type of a stored sample, and what it is."""
        x = self.assembly.site.train.x
        return str(x.dtype).removeprefix("torch."), "images" if x.dtype == torch.uint8 and x.dim() == 4 else "samples"

    @cached_property
    def module(self) -> Exported:
        """The student with scaling and its predictor inside; shares no memory."""
        train = self.assembly.site.train
        made = Exported(self.members, train.scale, train.offset, self.predictor, train.x.dim() - 1)
        return made.requires_grad_(False).eval()

    @property
    def predictor(self) -> Predictor:
        """From its members to logits."""
        return self.assembly.site.client.predictor(self.job)

    @property
    def members(self) -> list[Student]:
        """Copies of the students that the predictor uses."""
        return deepcopy(self.predictor.members(self.assembly.site.student(self.job)))

    @cached_property
    def held_out(self) -> Tensor:
        """Indices of test samples: a client's own split, else the pooled set. More than LIMIT are thinned evenly."""
        everything = torch.arange(len(self.assembly.site.test))
        own = everything if self.client is None else self.assembly.site.test_index.get(self.client, everything)
        return _thinned(own if len(own) else everything, LIMIT)

    def training(self, most: int) -> Tensor:
        """Indices of its training samples, thinned evenly to `most`."""
        index = self.assembly.site.train_index
        own = [part for client, part in index.items() if self.client in (None, client) and len(part)]
        if not own:
            raise RunError("the server has no training data to calibrate int8 with", mend="leave --int8 out")
        return _thinned(torch.cat(own), most)

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the run's own student on the held-out samples, computed as in its evaluation."""
        site = self.assembly.site
        batches = site.predict(site.client, site.student(self.job).eval(), self.job, self.held_out)
        return torch.cat([logits for logits, _ in batches])


@dataclass(frozen=True)
class Run:
    """A run folder's contents."""

    path: Path
    digest: str  # of the configuration
    strategy: str
    assembly: Assembly
    state: RunState

    def accuracy(self, client: ClientId | None) -> float | None:
        """The student's accuracy in the ledger at the checkpoint's round; None if that round did not evaluate it."""
        name = "metrics.jsonl" if client is None else "clients.jsonl"
        rows = [row for row in ledger.rows(self.path / name) if row["round"] == self.state.round]
        if client is None:
            return rows[0]["accuracy"].get("global") if rows else None
        return next((row.get("accuracy") for row in rows if row["client"] == client), None)


def load(path: Path, warn: Callable[[str], None]) -> Run:
    """A run at its newest valid checkpoint.

    Raises CheckpointError if there is none, or if data or configuration have changed.
    """
    info = run_folder.info(path)
    resolved = runs.same_configuration(path)
    places = path / "checkpoints"
    if not checkpoint.committed(places):
        raise CheckpointError(
            "the run has no checkpoint yet, so there is no student to export",
            where=str(path),
            mend=f"wait for round {resolved.config.checkpoint.every} if it is running, else: fedkd resume {path}",
        )
    assembly = _assembly(path, resolved.config)
    digest = assembly.partition.digest() if assembly.partition is not None else None
    if digest is not None and info.get("partition_sha256", digest) != digest:
        raise CheckpointError(
            "the partition differs from that of the run: the data or a library has changed",
            where=str(path),
            mend="restore the data set and the versions in run.json",
        )
    earlier = dict.fromkeys(extension.earlier(info), sys.maxsize)
    newest = checkpoint.load(places, assembly.experiment, resolved.digest(), warn, earlier)
    if newest is None:  # pruned meanwhile
        raise CheckpointError("its checkpoints vanished while they were read", where=str(path), mend="try again")
    return Run(path, resolved.digest(), naming.of(resolved.config.strategy), assembly, newest.state)


def _assembly(path: Path, config: RunConfig) -> Assembly:
    """The run's assembly; for a run on devices the server's, which has only a test set."""
    if not run_folder.is_on_devices(path):
        return assemble.assemble(config)
    from simulations.deploy import assembly, submit

    public = path.parent.parent / submit.PUBLIC
    server = assembly.server(config, public if public.exists() else None)
    if not len(server.site.test):
        raise DataError(
            "the server has no held-out samples to check the exported student on",
            where=str(path),
            mend="set data.test=PATH in the overrides of the deployment before a run",
        )
    return server


def student(assembly: Assembly, state: RunState, client: ClientId | None) -> Served:
    """The global student (client=None), or a client's own, as an evaluation after this state uses it.

    Raises ConfigError if there is none.
    """
    experiment = assembly.experiment
    clients = experiment.config.clients
    if client is None:
        payload = experiment.strategy.evaluation_payload(state.server, None)
        if payload is None:
            raise ConfigError(
                f"strategy '{naming.of(experiment.config.strategy)}' has no global student: every client has its own",
                where="command line",
                mend=f"choose whose to export: --client 0 to --client {clients - 1}",
            )
        payload = evaluation.with_statistics(experiment.problem, payload, state)
        return Served(assembly, Job(task="evaluate_pooled", client=0, round=state.round, payload=payload), None)
    if not 0 <= client < clients:
        raise ConfigError(
            f"there is no client {client}",
            where="command line",
            mend=f"this run has clients 0 to {clients - 1}",
        )
    payload, own = experiment.strategy.evaluation_payload(state.server, client) or Payload(), state.clients.get(client)
    if own is None and not payload.weights and not payload.samples:
        raise RunError(
            f"client {client} has no student yet: in {state.round} rounds it neither trained nor received one",
            mend="choose another --client, or run more rounds",
        )
    own = own or ClientState()
    if memory.VERSION in own.memory and _leaves_some(experiment.problem, client, payload):
        raise RunError(
            f"the student of client {client} is on its device; the server knows only its version",
            mend="export the global student if the strategy has one, or run the same configuration in simulation",
        )
    return Served(assembly, Job(task="evaluate", client=client, round=state.round, payload=payload, state=own), client)


def _leaves_some(problem: Problem, client: ClientId, payload: Payload) -> bool:
    """Whether some entries of the client's student come from its own memory and not from the server."""
    shape = problem.of(client).shape
    return bool({*shape.learnable, *shape.statistics} - {*(payload.weights or {})}) and not payload.samples


def facts(run: Run, served: Served) -> dict[str, str]:
    """The metadata of every exported file, as text."""
    shape, test = served.assembly.experiment.problem.input_shape, served.assembly.site.test
    value = "byte" if test.x.dtype == torch.uint8 else "value"
    rule = f"{value} * scale + offset" if test.scale else "as stored"
    return {
        "fedkd": fedkd.__version__,
        "run": run.path.name,
        "config": run.digest,
        "strategy": run.strategy,
        "student": served.name,
        "round": str(run.state.round),
        "data": served.assembly.dataset.name,
        "labels": json.dumps(list(served.assembly.dataset.labels)),
        "input": json.dumps({"name": "images", "dtype": served.stored[0], "shape": ["batch", *shape]}),
        "scaling": json.dumps({"rule": rule, "scale": test.scale, "offset": test.offset}),
        "accuracy": json.dumps({"held_out": accuracy(served, served.logits), "ledger": run.accuracy(served.client)}),
    }


def accuracy(served: Served, logits: Tensor) -> float:
    """The share of the held-out samples that these logits classify correctly."""
    labels = served.assembly.site.test.y[served.held_out]
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def _thinned(index: Tensor, most: int) -> Tensor:
    if len(index) <= most:
        return index
    return index[torch.linspace(0, len(index) - 1, most, dtype=torch.float64).round().long()]
