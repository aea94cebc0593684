"""Makes the engine that a configuration names; `auto` takes the one expected to finish first."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedkd.config import EngineConfig, RunConfig
from fedkd.engine import Engine, Job, Reply, Result
from fedkd.errors import EngineError
from simulations.engines import ray_session
from simulations.engines.inline import Inline, JobRunner
from simulations.system import operating_system, scratch

if TYPE_CHECKING:
    from fedkd.training.site import LocalSite
    from simulations.engines.ray_pool import RayPool

START_SECONDS = 8.0  # until a pool answers: ray.init 2.4 to 5, torch in each worker 2 to 4 (two cores; docs/engines.md)
EFFICIENCY = 0.85  # of a core that shares caches and memory with the others, calls included
FORWARD_SHARE = 0.3  # of an SGD step's time, per image

Notify = Callable[[str, str], None]  # a message for the user and its level: `note` or `warn`


class Warming(Engine):
    """Runs jobs in this process until the pool is ready, so no round waits for its start. Both give the same bytes.

    If the pool cannot start, `notify` reports it once and this process does the work; without `notify` it is an error.
    """

    name = "ray"

    def __init__(self, inline: Inline, pool: "RayPool", notify: Notify | None = None) -> None:
        self._inline, self._pool, self._notify = inline, pool, notify
        self._given_up = ""
        pool.start()

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        end = None if deadline is None else time.monotonic() + deadline
        for done, job in enumerate(jobs):
            left = None if end is None else end - time.monotonic()
            if self._is_ready():
                yield from self._pool.run(jobs[done:], left)
                return
            yield from self._inline.run([job], left)

    def _is_ready(self) -> bool:
        """Whether the pool takes jobs. Raises the pool's start error unless this process may do the work instead."""
        if self._given_up:
            return False
        try:
            is_ready = self._pool.is_ready
        except EngineError as error:
            if self._notify is None:
                raise
            self._given_up = error.what
            self._notify(f"Ray did not start, so this process does all the work: {error.what}", "warn")
            return False
        if is_ready:
            self._notify = None  # later errors are not failed starts
        return is_ready

    def close(self) -> None:
        self._pool.close()

    def facts(self) -> Mapping[str, Any]:
        return {"given_up": self._given_up} if self._given_up else self._pool.facts()


def make(config: EngineConfig, site: JobRunner, *, estimate: Callable[[], float], notify: Notify) -> tuple[Engine, str]:
    """The engine, and a sentence that names it with the reason. `estimate`: seconds of the run on one core, for auto.

    Raises EngineError if the configuration wants Ray, which cannot start here.
    """
    if config.name == "inline":
        return Inline(site), "engine: inline, as asked"
    name, why = ("ray", "as asked") if config.name == "ray" else choose(config, estimate)
    if name == "inline":
        return Inline(site), f"engine: inline, {why}"
    operating_system.check("engine=ray", EngineError)
    from simulations.engines.ray_pool import RayPool

    is_private = config.address is None
    detour = scratch.detour("ray", ray_session.SOCKET) if is_private else ""
    pool = RayPool(site, workers=config.workers, address=config.address)
    engine = Warming(Inline(site), pool, notify if config.name == "auto" and is_private else None)
    return engine, f"engine: ray x {_num_workers(config)}, {why}" + (f"; {detour}" if detour else "")


def choose(config: EngineConfig, estimate: Callable[[], float]) -> tuple[str, str]:
    """The engine that should finish first, `inline` or `ray`, and the reason."""
    if config.address is not None:
        return "ray", "because engine.address names a cluster"
    if importlib.util.find_spec("ray") is None:
        return "inline", "because Ray is not installed"
    workers = min(config.workers or ray_session.num_cores(), ray_session.num_cores())
    if workers == 1:
        return "inline", "because there is one core to use"
    try:
        operating_system.check("engine=ray", EngineError)
        scratch.detour("ray", ray_session.SOCKET)
    except EngineError as error:
        return "inline", f"because Ray cannot start: {error.what}"
    alone = estimate()
    shared = START_SECONDS + alone / (workers * EFFICIENCY)
    # The measured step does not cover the method's own work at clients or server, so no time is promised for it.
    why = (
        f"because plain training and evaluation take about {alone:.0f} s on one core and {shared:.0f} s with {workers} "
        "workers, start included; what the method adds is measured in round 1"
    )
    return ("ray" if shared < alone else "inline"), why


def estimate(config: RunConfig, site: "LocalSite") -> float:
    """Seconds of plain training and evaluation on one core, from a measured SGD step.

    A lower bound for the run: without the method's extra terms and phases, and without the server's work.
    """
    cohort = min(config.clients_per_round or config.clients, config.clients)
    sizes = [len(index) for index in site.train_index.values()]
    mean_size = sum(sizes) / max(1, len(sizes))
    epochs = config.train.epochs * mean_size / config.train.batch
    steps = config.rounds * cohort * (config.train.steps if config.train.steps is not None else epochs)
    images_own = sum(map(len, site.test_index.values())) / config.evaluate.every
    images_pooled = len(site.test) / config.evaluate.pooled_every
    images = config.rounds * (images_own + images_pooled)
    return step_seconds(site) * (steps + FORWARD_SHARE * images / config.train.batch)


def step_seconds(site: "LocalSite") -> float:
    """Seconds of one forward and backward pass of the run's student on one batch: the minimum of four."""
    import torch
    import torch.nn.functional as F  # its usual name

    student = site.problem.initial().train()
    x = site.problem.blank(site.problem.train.batch)
    y = torch.zeros(len(x), dtype=torch.int64)

    def step() -> float:
        start = time.perf_counter()
        torch.autograd.grad(F.cross_entropy(student(x), y), list(student.parameters()))
        return time.perf_counter() - start

    return min(step() for _ in range(4))


class Echo:
    """Answers each job with its own payload: measures an engine without any training."""

    def run(self, job: Job) -> Result:
        return Reply(client=job.client, round=job.round, exchange=job.exchange, payload=job.payload)


def _num_workers(config: EngineConfig) -> str:
    if config.workers is None and config.address is not None:
        return "every core of the cluster"
    return str(config.workers or ray_session.num_cores())
