"""Every algorithm there is: each file of conf/strategy, each of its variants, and a shared head if it can share one.

A new algorithm joins the tests of tests/conformance by having such a file.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import tiny
from omegaconf import OmegaConf

from fedkd import compose, rounds
from fedkd.config import RunConfig
from fedkd.engine import Engine, Job, Reply
from fedkd.payload import Payload
from fedkd.rounds import Experiment, Round, RunState
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from simulations import assemble
from simulations.assemble import Assembly

SMALL = (  # three rounds of this take a tenth of a second: whatever else a method costs is its own
    "data=digits",
    "partition=dirichlet",
    "partition.alpha=0.5",
    "clients=5",
    "clients_per_round=4",
    "rounds=3",
    "train.batch=8",
    "train.steps=3",
    "train.lr=0.05",
    "evaluate.probe=8",
)
FEWER = {"generator_steps": 5}  # of what takes time and proves nothing more; where a half has such a key


def words() -> list[tuple[str, ...]]:
    """What each algorithm is called on a command line."""
    found = []
    for name in compose.options("strategy"):
        variants = OmegaConf.load(compose.CONF / "strategy" / f"{name}.yaml").get("variants") or {None: {}}
        base = f"strategy={name}"
        found += [(base, f"strategy.variant={variant}") if variant else (base,) for variant in variants]
        if "share" in {field.name for half in halves((base,)) for field in fields(half.config)}:
            found.append((base, "strategy.share=head"))
    return found


@cache
def configure(algorithm: tuple[str, ...], *more: str) -> RunConfig:
    """The small run of an algorithm, changed by more words."""
    chosen = compose.resolve([*SMALL, *algorithm]).config.strategy
    fewer = [f"strategy.{key}={few}" for key, few in FEWER.items() if chosen.get(key, 0) > few]
    return compose.resolve([*SMALL, *algorithm, *fewer, *more]).config


def halves(algorithm: tuple[str, ...]) -> tuple[Any, Any]:
    """Its Strategy and its Client."""
    return assemble.halves(configure(algorithm).strategy)


@dataclass(frozen=True)
class Exchange:
    """One trip down and up as the strategy saw it."""

    before: Any
    cohort: Cohort
    payloads: Mapping[int, Payload]
    replies: Sequence[Reply]
    stream: Stream
    after: Any
    numbers: Mapping[str, float]


class Watched(Strategy[Any]):
    """A strategy that notes what it is asked and what it answers."""

    def __init__(self, inner: Strategy[Any]) -> None:
        self.inner, self.config = inner, inner.config
        self.needs, self.gives, self.exchanges = inner.needs, inner.gives, inner.exchanges  # type: ignore[misc]
        self.seen: list[Exchange] = []
        self._planned: tuple[Cohort, Mapping[int, Payload]]

    def init(self, problem, stream):
        return self.inner.init(problem, stream)

    def plan(self, state, cohort):
        payloads = self.inner.plan(state, cohort)
        self._planned = (cohort, payloads)
        return payloads

    def aggregate(self, state, replies, stream):
        after, numbers = self.inner.aggregate(state, replies, stream)
        self.seen.append(Exchange(state, *self._planned, list(replies), stream, after, numbers))
        return after, numbers

    def served(self, state, client):
        return self.inner.served(state, client)


@dataclass(frozen=True)
class Trail:
    """Three rounds of an algorithm and all that was said in them."""

    assembly: Assembly
    rounds: list[Round]
    exchanges: list[Exchange]
    jobs: list[Job]  # of training

    @property
    def experiment(self) -> Experiment:
        return self.assembly.experiment

    @property
    def strategy(self) -> Strategy[Any]:
        return self.experiment.strategy

    @property
    def states(self) -> list[RunState]:
        """Before the first round, and after each."""
        return [rounds.begin(self.experiment), *(played.state for played in self.rounds)]


def follow(assembly: Assembly) -> Trail:
    """Play the rounds of an assembly in this process and note all."""
    experiment = assembly.experiment
    watched = Watched(experiment.strategy)
    engine = tiny.FakeEngine(assembly.site)
    played = play(replace(experiment, strategy=watched), engine)
    jobs = [job for job in engine.jobs if job.task == "train"]
    return Trail(assembly, played, watched.seen, jobs)


def play(experiment: Experiment, engine: Engine) -> list[Round]:
    """All rounds of an experiment."""
    return tiny.play(experiment, engine, experiment.config.rounds)


def what_counts(played: Sequence[Round]) -> Any:
    """Rows and the last state, for `==`."""
    return [(p.row, p.clients) for p in played], tiny.canonical(played[-1].state)


def distinct(values: Sequence[Any]) -> int:
    """How many of the values differ to `==`."""
    return sum(1 for _ in itertools.groupby(sorted(map(repr, values))))
