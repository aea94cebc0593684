"""The measurements of `fedkd bench`. Comparisons use pairs measured one after the other, because machines are noisy."""

import importlib.util
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedkd import rounds
from fedkd.client import Client
from fedkd.config import EvaluateConfig, RunConfig
from fedkd.data.samples import Samples
from fedkd.engine import Engine, Job
from fedkd.errors import EngineError
from fedkd.experiment import Experiment, RunState
from fedkd.participation import Outcome, Site
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.record import checkpoint
from fedkd.rounds import Round
from fedkd.student import Student
from fedkd.training.site import LocalSite
from simulations import assemble
from simulations.assemble import Assembly
from simulations.bench.bare_loop import BareLoop
from simulations.engines.inline import Inline
from simulations.engines.ray_pool import RayPool
from simulations.system import subprocesses

WARMUP = 2  # rounds that run but do not count: caches are cold, and FedGen's first has no generator
PHASES = ("clients", "server", "evaluation", "rest", "total")
START_SECONDS = 180.0  # for a pool on a busy machine
NEVER = 10**9
IDLE_CLIENTS = 100  # in a round of clients that do nothing
IDLE_SHAPE = (1, 27, 37)  # 999 inputs and 10 classes: a linear student of exactly 10,000 parameters


def assembled(config: RunConfig, count: int) -> Assembly:
    """The configuration with so many rounds that the last one, which evaluates more, is never measured."""
    return assemble.assemble(replace(config, rounds=max(config.rounds, WARMUP + count + 1)))


def against_bare(assembly: Assembly, count: int) -> dict[str, Any]:
    """The inline engine against the bare loop: `count` rounds of each, in turns, with the same cohorts.

    Gives medians in seconds by phase and medians of the paired ratios; `cpu` is processor time of the whole round.
    """
    experiment, bare, engine = assembly.experiment, BareLoop(assembly), Inline(assembly.site)
    state, pairs = rounds.begin(experiment), []
    for number in range(1, WARMUP + count + 1):
        plain = _bare_round(bare, number, rounds.draw_cohort(experiment.config, number))
        state, ours = _inline_round(experiment, engine, state)
        pairs.append((plain, ours))
    counted = pairs[WARMUP:]
    return {
        "method": bare.method,
        "is_same": bare.is_same,
        "rounds": count,
        "phases": {phase: _compare(counted, phase) for phase in (*PHASES, "cpu")},
        "commit": _commit_seconds(state),
        "first_round": pairs[0][1]["total"],
    }


def in_turns(baseline: Assembly, other: Assembly, count: int) -> list[tuple[Mapping[str, float], Mapping[str, float]]]:
    """Seconds by phase of `count` rounds of each, in turns, with the same cohorts, without the warm-up."""
    engines = [(assembly.experiment, Inline(assembly.site)) for assembly in (baseline, other)]
    states = [rounds.begin(experiment) for experiment, _ in engines]
    pairs: list[tuple[Mapping[str, float], Mapping[str, float]]] = []
    for _ in range(WARMUP + count):
        first, second = (_run_round(*pair, state) for pair, state in zip(engines, states, strict=True))
        states = [first.state, second.state]
        pairs.append((first.timings, second.timings))
    return pairs[WARMUP:]


def on_ray(assembly: Assembly, count: int, workers: int, exchanges: int) -> dict[str, Any]:
    """A pool against the inline engine, round by round; also the pool's seconds to start and per message."""
    experiment, inline = assembly.experiment, Inline(assembly.site)
    pool, started = start_pool(assembly.site, workers)
    try:
        state, pairs, is_equal = rounds.begin(experiment), [], True
        for _ in range(WARMUP + count):
            alone = _run_round(experiment, inline, state)
            pooled = _run_round(experiment, pool, state)
            is_equal &= alone.row == pooled.row
            state = alone.state
            pairs.append((alone.timings, pooled.timings))
        idle, site = idle_experiment()
        pool.serve(site)
        message = message_seconds(idle, pool, exchanges)
    finally:
        pool.close()
    counted = pairs[WARMUP:]
    return {
        "workers": workers,
        "start": started,
        "inline": statistics.median(one["total"] for one, _ in counted),
        "ray": statistics.median(two["total"] for _, two in counted),
        "speedup": statistics.median(one["total"] / two["total"] for one, two in counted),
        "is_equal": is_equal,
        "message": message,
        "phases": {"inline": medians(one for one, _ in counted), "ray": medians(two for _, two in counted)},
    }


def medians(timings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of each phase; `busy` is the sum over the clients' jobs, wherever they ran."""
    rows = list(timings)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def start_pool(site: LocalSite, workers: int) -> tuple[RayPool, float]:
    """A pool with all workers ready, and the seconds until the first one was. Raises EngineError."""
    start = time.perf_counter()
    pool = RayPool(site, workers=workers).start()
    try:
        _wait(lambda: pool.is_ready)
        ready = time.perf_counter() - start
        index = min(client for client, part in site.test_index.items() if len(part))
        while len(pool.pids) < workers:  # the pool reads greetings only while jobs run
            list(pool.run([Job(task="evaluate", client=index, round=1, payload=Payload())]))
            _check_time(start, "not all workers have started")
    except BaseException:
        pool.close()
        raise
    return pool, ready


def message_seconds(experiment: Experiment, engine: Engine, exchanges: int) -> float:
    """Seconds per round and idle client: plan, engine, border, drift and mean. The median of rounds."""
    state, seconds = rounds.begin(experiment), []
    for _ in range(WARMUP + exchanges):
        result = _run_round(experiment, engine, state)
        state = result.state
        seconds.append((result.timings["clients"] + result.timings["server"]) / IDLE_CLIENTS)
    return statistics.median(seconds[WARMUP:])


def inline_message_seconds(exchanges: int) -> float:
    """`message_seconds` of the inline engine."""
    experiment, site = idle_experiment()
    return message_seconds(experiment, Inline(site), exchanges)


class Idle(Client):
    """Sends back what it received."""

    def train(self, site: Site, job: Job) -> Outcome:
        return Outcome(Payload(weights=job.payload.weights), job.state, {})


def idle_student() -> Student:
    channels, height, width = IDLE_SHAPE
    linear = nn.Linear(channels * height * width, 10)
    return Student(OrderedDict[str, nn.Module](flatten=nn.Flatten(), head=linear))


def idle_experiment() -> tuple[Experiment, LocalSite]:
    """Federated averaging of 100 idle clients, with 10,000 parameters; without evaluation."""
    never = EvaluateConfig(every=NEVER, pooled_every=NEVER, probe=0)
    config = RunConfig(rounds=NEVER, clients=IDLE_CLIENTS, evaluate=never, strategy={"name": "fedavg"})
    strategy, _ = assemble.halves(config.strategy)
    problem = Problem(
        seed=0,
        rounds=NEVER,
        clients=IDLE_CLIENTS,
        classes=10,
        input_shape=IDLE_SHAPE,
        make=idle_student,
        statistics="average",
        train=config.train,
    )
    one = Samples(torch.zeros(1, *IDLE_SHAPE, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), (1.0,), (0.0,))
    index = {client: torch.zeros(1, dtype=torch.int64) for client in range(IDLE_CLIENTS)}
    site = LocalSite(problem=problem, client=Idle(), train=one, test=one, train_index=index, test_index=index)
    return Experiment(config, problem, strategy, 0), site


def starting(repeats: int) -> dict[str, float]:
    """Median seconds of new Python processes that only start, answer or import. Empty for 0 repeats."""
    if not repeats:
        return {}
    commands = {
        "python": ("-c", "pass"),
        "fedkd --help": ("-m", "simulations.cli", "--help"),
        "import torch": ("-c", "import torch"),
        "import all for a run": ("-c", "import simulations.run.runs, simulations.assemble"),
    }
    if importlib.util.find_spec("ray"):
        commands["import ray"] = ("-c", "import ray")
    return {name: statistics.median(_timed(args) for _ in range(repeats)) for name, args in commands.items()}


def _timed(args: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocesses.python(*args, timeout=START_SECONDS)
    return time.perf_counter() - start


def _bare_round(bare: BareLoop, number: int, cohort: Sequence[int]) -> dict[str, float]:
    cpu = time.process_time()
    timings = bare.run_round(number, cohort)
    return _complete(timings, time.process_time() - cpu)


def _inline_round(experiment: Experiment, engine: Engine, state: RunState) -> tuple[RunState, dict[str, float]]:
    cpu = time.process_time()
    result = _run_round(experiment, engine, state)
    return result.state, _complete(result.timings, time.process_time() - cpu)


def _run_round(experiment: Experiment, engine: Engine, state: RunState) -> Round:
    """One round. Raises EngineError if a client failed: failing is faster than working."""
    result = rounds.run_round(experiment, engine, state)
    if result.failures:
        raise EngineError(f"client {result.failures[0].client} failed: {result.failures[0].what}")
    return result


def _complete(timings: Mapping[str, float], cpu: float) -> dict[str, float]:
    rest = timings["total"] - sum(timings[phase] for phase in ("clients", "server", "evaluation"))
    return {**timings, "rest": rest, "cpu": cpu}


def _compare(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], phase: str) -> dict[str, float]:
    values = [(plain[phase], ours[phase]) for plain, ours in pairs]
    return {
        "bare": statistics.median(plain for plain, _ in values),
        "inline": statistics.median(ours for _, ours in values),
        "ratio": statistics.median(ours / plain if plain > 0 else float("nan") for plain, ours in values),
    }


def _commit_seconds(state: RunState) -> float:
    """Seconds to write a checkpoint of this state, on the disk of temporary files."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        checkpoint.commit(Path(folder), state, {}, "", None)
        return time.perf_counter() - start


def _wait(is_done: Callable[[], bool]) -> None:
    start = time.perf_counter()
    while not is_done():
        _check_time(start, "Ray has not started")
        time.sleep(0.02)


def _check_time(start: float, problem: str) -> None:
    if time.perf_counter() - start > START_SECONDS:
        raise EngineError(f"{problem} within {START_SECONDS:g} s", mend="fedkd doctor")
