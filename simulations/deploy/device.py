"""A device: its client's data, memory and limits, and its answers to the server."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord

import fedkd
from fedkd import engine
from fedkd.config import RunConfig
from fedkd.configuration import compose, naming
from fedkd.data import image_spec
from fedkd.engine import ClientState, Failure, Job, Reply, Result
from fedkd.errors import ConfigError, FedkdError
from fedkd.training.site import LocalSite
from simulations.deploy import assembly
from simulations.deploy.kit import Kit
from simulations.deploy.memory import Memory, stub, version_of
from simulations.flower import message_limits

KIT = "kit"  # keys of Flower's node-config that make a node a device
DATA = "data"
# What is read of a server's job; a device that lends less memory reads less.
_JOB = message_limits.Limits(size=1 << 30, text=1 << 20, entries=10_000)
_TASKS = ("train", "evaluate", "evaluate_common")
_COPIES = 12  # of a student's parameters during training: gradients, moments, teachers, activations


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as its node-config and its kit describe it. The last three fields are its owner's limits."""

    client: int
    clients: int
    name: str
    data: Path
    state: Path
    students: tuple[str, ...] | None = None  # architectures; None: all, as for strategies
    strategies: tuple[str, ...] | None = None
    memory_mb: int | None = None  # None: unlimited

    @property
    def reads(self) -> message_limits.Limits:
        """Size limits of a job: no more than the memory that the device lends."""
        lent = self.memory_mb
        return _JOB if lent is None else replace(_JOB, size=min(_JOB.size, 1_000_000 * lent))

    def introduce(self, text: str, run: str) -> ConfigRecord:
        """The device's facts before a run; `refused`: why it does not take part, without revealing its data."""
        facts: dict[str, Any] = {
            "device": True,
            "partition-id": self.client,
            "num-partitions": self.clients,
            "name": self.name,
            "fedkd": fedkd.__version__,
            "torch": str(torch.__version__),
            "threads": os.cpu_count() or 1,
        }
        if self.memory_mb is not None:
            facts["memory-mb"] = self.memory_mb
        try:
            config = configuration(text)
            facts["student"] = self.check(config, text, run)
        except FedkdError as error:
            print(f"{self.name}  does not take part: {error}", flush=True)
            facts["refused"] = _public(error)
        except Exception as error:  # noqa: BLE001  # the border: the server must learn of it
            print(f"{self.name}  does not take part: {type(error).__name__}: {error}", flush=True)
            facts["refused"] = type(error).__name__
        return ConfigRecord(facts)

    def check(self, config: RunConfig, text: str, run: str) -> str:
        """Check that the device can and may take part; returns its student. Raises FedkdError."""
        installed = _installed()
        if installed not in (None, fedkd.__version__):
            raise ConfigError(
                f"fedkd {installed} is installed here, the run uses {fedkd.__version__}",
                mend=f"install the same: pip install fedkd=={fedkd.__version__}",
            )
        chosen = naming.of(config.strategy)
        if self.strategies is not None and chosen not in self.strategies:
            raise ConfigError(f"this device does not allow strategy '{chosen}'", mend="see strategies in its node.yaml")
        site = self._site(text, run)
        student = site.problem.architecture(self.client) or config.students.name
        if self.students is not None and student not in self.students:
            raise ConfigError(f"this device does not run student '{student}'", mend="see students in its node.yaml")
        module = site.problem.of(self.client).shape
        needed = _COPIES * sum(p.numel() * 4 for p in module.parameters()) / 1e6
        if self.memory_mb is not None and needed > self.memory_mb:
            what = f"student '{student}' may take {needed:.0f} MB in training, this device lends {self.memory_mb}"
            raise ConfigError(what, mend="choose a smaller student for it, or raise memory_mb in its node.yaml")
        return student

    def answer(self, job: Job, text: str, run: str) -> Result:
        """Run a job with the device's own memory. Errors become Failures."""
        try:
            result = self._answer(job, text, run)
        except FedkdError as error:
            print(f"{self.name}  {error}", flush=True)
            return engine.failed(job, _public(error), "raised")
        except OSError as error:
            print(f"{self.name}  {error}", flush=True)
            what = f"{type(error).__name__}: the device cannot keep its state: {error.strerror}"
            return engine.failed(job, what, "raised")
        return self._redacted(result) if isinstance(result, Failure) else result

    def _answer(self, job: Job, text: str, run: str) -> Result:
        if job.client != self.client or job.task not in _TASKS:
            return engine.failed(job, f"this device only acts for client {self.client}", "raised")
        memory = Memory(self.state, run, self.client)
        state, lost = self._recall(memory, job.state)
        result = self._site(text, run).run(replace(job, state=state))
        if not isinstance(result, Reply) or job.task != "train":
            return result
        kept = stub(result.state, memory.save(result.state))
        print(f"{self.name}  round {job.round}: trained in {result.seconds:.1f} s", flush=True)
        return replace(result, state=replace(kept, memory={**kept.memory, "lost": True}) if lost else kept)

    def _recall(self, memory: Memory, known: ClientState) -> tuple[ClientState, bool]:
        """The state of the version that the server names, and whether it is lost; then only the stub's facts remain."""
        version = version_of(known)
        if version is None:
            return ClientState(), False
        state = memory.load(version)
        if state is not None:
            return replace(state, last_round=known.last_round), False  # the server counts the rounds
        return ClientState(epoch=known.epoch, position=known.position, last_round=known.last_round), True

    def _redacted(self, failure: Failure) -> Failure:
        """A failure that may leave the device: without exception text and traceback, which may name data."""
        if failure.cause != "raised" or not failure.detail:
            return failure
        print(f"{self.name}  {failure.what}\n{failure.detail}", flush=True)
        return replace(failure, what=f"{failure.what.partition(':')[0]}: see the device's log", detail="")

    def _site(self, text: str, run: str) -> LocalSite:
        return _site(text, run, self.data, self.client, self.state)


def is_one(node_config: Mapping[str, Any]) -> bool:
    """Whether a node is a device with its own data, rather than a node of a simulation."""
    return DATA in node_config or KIT in node_config


def of(node_config: Mapping[str, Any]) -> Device | None:
    """The device that a node-config describes; None for a node of a simulation. Raises ConfigError."""
    if not is_one(node_config):
        return None
    try:
        client, clients = (node_config[key] for key in ("partition-id", "num-partitions"))
    except KeyError as error:
        what = f"node-config has no {error.args[0]}"
        raise ConfigError(what, where="node-config", mend="see docs/deploy.md") from None
    if KIT not in node_config:
        state = Path(str(node_config.get("state") or Path.home() / ".fedkd" / "state"))
        name, data = str(node_config.get("name", f"node-{client}")), Path(str(node_config[DATA]))
        return Device(client=client, clients=clients, name=name, data=data, state=state)
    kit = Kit.load(Path(str(node_config[KIT])))
    given = node_config.get(DATA) or kit.data
    if not given:
        mend = "give --data PATH, or data in node.yaml"
        raise ConfigError(f"{kit.name} has no data", where=str(kit.folder), mend=mend)
    return Device(
        client=client,
        clients=clients,
        name=kit.name,
        data=Path(str(given)),
        state=kit.state,
        students=kit.students,
        strategies=kit.strategies,
        memory_mb=kit.memory_mb,
    )


@lru_cache(maxsize=4)
def _site(text: str, run: str, data: Path, client: int, state: Path) -> LocalSite:
    """The site of a client's jobs. A worker reads the data once per run."""
    torch.set_num_threads(1)  # results differ in their last bits between one and two threads
    return assembly.device(configuration(text), data, client, state)


@cache
def configuration(text: str) -> RunConfig:
    """The complete configuration that a server sends, parsed. Raises ConfigError."""
    return compose.from_yaml(text, "the run's configuration").config


def _public(error: FedkdError) -> str:
    """The text of an error that may leave the device: without file names and sample counts."""
    return error.what if isinstance(error, ConfigError) else image_spec.public_reason(error)


def _installed() -> str | None:
    try:
        return metadata.version("fedkd")
    except metadata.PackageNotFoundError:
        return None
