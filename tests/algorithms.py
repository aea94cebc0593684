"""Every algorithm there is: each file of conf/strategy, each of its variants, and a shared head if it can share one.

A new algorithm joins the tests of tests/conformance by having such a file.
"""

import ast
import importlib.util
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import yaml

from fedkd import rounds
from fedkd.config import RunConfig
from fedkd.configuration import compose, plugins, reference
from fedkd.engine import Engine, Job, Reply
from fedkd.experiment import Experiment, RunState
from fedkd.payload import Payload
from fedkd.rounds import Round
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
FEWER = {"_steps": 3, "_epochs": 2, "images": 24}  # of what takes time and proves nothing more: by the end of a key
AT_ONCE = {"least_variation": 0.0}  # what waits until students know something; by key
PUBLIC = ("proxy=held-out", "proxy.size=20")  # of algorithms that need a public set, or can use one
MIXED = "students={fedgen-cnn: 0.5, mlp: 0.5}"  # differ in all: entries, statistics, width of the latent


@cache
def words() -> list[tuple[str, ...]]:
    """What each algorithm is called on a command line. Imports none of them: one that is broken fails alone."""
    found = []
    for name in compose.options("strategy"):
        node = yaml.safe_load((compose.CONF / "strategy" / f"{name}.yaml").read_text())
        base = f"strategy={name}"
        found += [
            (base, f"strategy.variant={variant}") if variant else (base,) for variant in node.get("variants") or [None]
        ]
        theirs = reference.of_half("strategies", node["name"]), reference.of_half("clients", node.get("client", ""))
        if name == node["name"] and "share" in {key.name for keys in theirs for key in keys or ()}:
            found.append((base, "strategy.share=head"))
        if declared(node["name"]).get("proxy") == "optional":
            found.append((base, *PUBLIC))
    return found


def names() -> list[tuple[str, ...]]:
    """Of the same, the first of each file."""
    return list({algorithm[0]: algorithm for algorithm in reversed(words())}.values())[::-1]


@cache
def server(algorithm: tuple[str, ...]) -> str:
    """The name of its server half."""
    name: str = compose.node("strategy", algorithm[0].removeprefix("strategy="))["name"]
    return name


@cache
def declared(name: str) -> dict[str, Any]:
    """What a server half says of itself in its class: attributes that are plain literals, read from the source."""
    module = plugins.modules("strategies").get(name)
    spec = importlib.util.find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return {}
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and is_strategy(node)]
    found = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = literal(node.value)
    return found


def is_strategy(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).partition("[")[0].endswith("Strategy") for base in node.bases)


def literal(node: ast.expr) -> Any:
    """Its value if it is a plain literal or a frozenset of one; else its text, marked as code."""
    match node:
        case ast.Call(func=ast.Name(id="frozenset"), args=[], keywords=[]):
            return frozenset()
        case ast.Call(func=ast.Name(id="frozenset"), args=[inner], keywords=[]):
            return frozenset(ast.literal_eval(inner))
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Code(ast.unparse(node))


class Code(str):
    """What only an import can tell."""


@cache
def configure(algorithm: tuple[str, ...], *more: str) -> RunConfig:
    """The small run of an algorithm, changed by more words."""
    return compose.resolve([*_small(algorithm), *more]).config


@cache
def _small(algorithm: tuple[str, ...]) -> tuple[str, ...]:
    public = PUBLIC if declared(server(algorithm)).get("proxy") == "yes" else ()
    chosen = compose.resolve([*SMALL, *public, *algorithm]).config.strategy
    less = [
        f"strategy.{key}={few}"
        for key, value in chosen.items()
        for end, few in FEWER.items()
        if key.endswith(end) and isinstance(value, int) and value > few
    ]
    less += [f"strategy.{key}={value}" for key, value in AT_ONCE.items() if key in chosen]
    return (*SMALL, *public, *algorithm, *less)


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
    findings: Mapping[str, Any]
    as_it_was: Any  # both states, canonical, when the exchange ended

    @property
    def asked(self) -> tuple[int, ...]:
        """The clients that got a job: those of the cohort, or some of them."""
        return tuple(sorted(self.payloads))


class Watched(Strategy[Any]):
    """A strategy that notes what it is asked and what it answers."""

    def __init__(self, inner: Strategy[Any]) -> None:
        self.inner, self.config = inner, inner.config
        for name in Strategy.__annotations__:  # what it says of itself
            setattr(self, name, getattr(inner, name))
        self.seen: list[Exchange] = []
        self._planned: tuple[Cohort, Mapping[int, Payload]]

    def init(self, problem, stream):
        return self.inner.init(problem, stream)

    def num_exchanges(self, round):
        return self.inner.num_exchanges(round)

    def expected_kinds(self, cohort):
        return self.inner.expected_kinds(cohort)

    def inspect(self, state, job, reply):
        self.inner.inspect(state, job, reply)

    def plan(self, state, cohort):
        payloads = self.inner.plan(state, cohort)
        self._planned = (cohort, payloads)
        return payloads

    def aggregate(self, state, replies, stream):
        after, findings = self.inner.aggregate(state, replies, stream)
        as_it_was = tiny.canonical([state, after])
        self.seen.append(Exchange(state, *self._planned, list(replies), stream, after, findings, as_it_was))
        return after, findings

    def evaluation_payload(self, state, client):
        return self.inner.evaluation_payload(state, client)


@dataclass(frozen=True)
class Trail:
    """Three rounds of an algorithm and all that was said in them."""

    words: tuple[str, ...]
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

    def round(self, number: int) -> list[Exchange]:
        """The exchanges of one round."""
        return [exchange for exchange in self.exchanges if exchange.cohort.round == number]

    @property
    def states(self) -> list[RunState]:
        """Before the first round, and after each."""
        return [rounds.begin(self.experiment), *(played.state for played in self.rounds)]


@cache
def trail(algorithm: tuple[str, ...], *more: str) -> Trail:
    """Three rounds of the small run of an algorithm, changed by more words."""
    assembly = assemble.assemble(configure(algorithm, *more))
    experiment = assembly.experiment
    watched = Watched(experiment.strategy)
    engine = tiny.FakeEngine(assembly.site)
    played = play(replace(experiment, strategy=watched), engine)
    jobs = [job for job in engine.jobs if job.task == "train"]
    return Trail(algorithm, assembly, played, watched.seen, jobs)


@dataclass(frozen=True)
class Told:
    """A round as it was, and what each of its exchanges would have led to without the first client, who will lie."""

    said: list[Exchange]
    liar: int
    without: list[Any]  # states of the server, canonical


def told(trail: Trail, number: int) -> Told | None:
    """A round of a trail; None if one client alone is asked: without it there is no round."""
    said = trail.round(number)
    if len(said[0].replies) < 2:
        return None
    liar, without = said[0].asked[0], []
    for exchange in said:
        honest = [reply for reply in exchange.replies if reply.client != liar]
        without.append(tiny.canonical(trail.strategy.aggregate(exchange.before, honest, exchange.stream)[0]))
    return Told(said, liar, without)


def play(experiment: Experiment, engine: Engine) -> list[Round]:
    """All rounds of an experiment."""
    return tiny.play(experiment, engine, experiment.config.rounds)


def what_counts(played: Sequence[Round]) -> Any:
    """Rows and the last state, for `==`."""
    return [(p.row, p.clients) for p in played], tiny.canonical(played[-1].state)


def distinct(values: Sequence[Any]) -> int:
    """How many of the values differ to `==`."""
    return sum(1 for _ in itertools.groupby(sorted(map(repr, values))))


def numbers(findings: Any) -> Iterator[float]:
    """All numbers in findings, at any depth; NaN for what is none."""
    if isinstance(findings, Mapping):
        findings = list(findings.values())
    if isinstance(findings, list | tuple):
        for item in findings:
            yield from numbers(item)
    else:
        is_number = isinstance(findings, int | float) and not isinstance(findings, bool)
        yield float(findings) if is_number else math.nan
