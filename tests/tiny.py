"""The smallest problem that has everything: builders and an engine for the tests, no fixtures."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedkd import rounds, seeds
from fedkd.client import Client
from fedkd.config import EvaluateConfig, RunConfig, TrainConfig
from fedkd.data.samples import Samples
from fedkd.engine import Engine, Job, Reply, Result
from fedkd.experiment import Experiment
from fedkd.payload import Payload, Weights
from fedkd.problem import Problem
from fedkd.rounds import Round
from fedkd.strategy import Strategy
from fedkd.student import Student
from fedkd.training.site import LocalSite

CLASSES, LATENT, SIDE = 3, 4, 6
# Students of images of any size.
STUDENTS = ("mlp", "lenet5", "fedgen-cnn", "mcmahan-cnn", "knfu-cnn", "knfu-cnn-bn", "fedd2s-cnn", "resnet8")
STUDENTS += ("resnet20",)
TRAIN = TrainConfig(batch=4, steps=3, lr=0.1)


def plain() -> Student:
    """One hidden layer, nothing normalised."""
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, LATENT), nn.Tanh())
    return Student(OrderedDict(hidden=hidden, head=nn.Linear(LATENT, CLASSES)))


def normed() -> Student:
    """A convolution with BatchNorm before the latent."""
    conv = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.ReLU())
    latent = nn.Sequential(nn.Flatten(), nn.Linear(2 * 2 * 2, LATENT))
    return Student(OrderedDict(conv=conv, latent=latent, head=nn.Linear(LATENT, CLASSES)))


def problem(make: Callable[[], Student] = plain, **changes: Any) -> Problem:
    base = Problem(
        seed=0,
        rounds=4,
        clients=3,
        classes=CLASSES,
        input_shape=(1, SIDE, SIDE),
        make=make,
        statistics="average",
        train=TRAIN,
    )
    return replace(base, **changes)


def samples(count: int = 60, seed: int = 0) -> Samples:
    """Noise with a bright row that tells the label; labels go round 0, 1, 2, 0, ..."""
    y = torch.arange(count) % CLASSES
    x = torch.randint(0, 100, (count, 1, SIDE, SIDE), generator=seeds.stream(seed, "x").torch())
    x[torch.arange(count), 0, 2 * y] += 150
    return Samples(x.to(torch.uint8), y, scale=(2 / 255,), offset=(-1.0,))


def site(client: Client, problem: Problem, sizes: Sequence[int] = (20, 12, 7), tests: Sequence[int] = ()) -> LocalSite:
    """A site whose clients hold `sizes` training samples, and `tests` test samples (9 each, where not said)."""
    tests = tests or [9] * len(sizes)
    return LocalSite(
        problem=problem,
        client=client,
        train=samples(sum(sizes), seed=1),
        test=samples(max(1, sum(tests)), seed=2),
        train_index=dict(enumerate(torch.arange(sum(sizes)).split(list(sizes)))),
        test_index=dict(enumerate(torch.arange(sum(tests)).split(list(tests)))),
    )


def job(problem: Problem, **changes: Any) -> Job:
    """Client 0's first training job, with the initial weights."""
    base = Job(task="train", client=0, round=1, payload=Payload(weights=problem.shared(problem.initial().weights)))
    return replace(base, **changes)


def experiment(
    strategy: Strategy[Any], site: LocalSite, pooled_labels: Tensor | None = None, **changes: Any
) -> Experiment:
    """An experiment over the clients of a site, all of them in every round unless `changes` say otherwise."""
    problem = site.problem
    config = RunConfig(
        seed=problem.seed,
        rounds=problem.rounds,
        clients=len(site.train_index),
        train=problem.train,
        evaluate=EvaluateConfig(probe=0),
    )
    return Experiment(replace(config, **changes), problem, strategy, len(site.test), pooled_labels)


@dataclass
class FakeEngine(Engine):
    """Runs jobs at a site, in this process, and spoils, drops or reorders what comes back."""

    site: LocalSite
    spoil: Callable[[Job, Result], Result] = lambda job, result: result
    order: Callable[[list[Result]], Sequence[Result]] = lambda results: results
    jobs: list[Job] = field(default_factory=list)  # all jobs it was given
    name = "fake"

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        self.jobs += jobs
        yield from self.order([self.spoil(job, self.site.run(job)) for job in jobs])


def play(experiment: Experiment, engine: Engine, count: int = 1) -> list[Round]:
    """The first `count` rounds."""
    played, state = [], rounds.begin(experiment)
    for _ in range(count):
        played.append(rounds.run_round(experiment, engine, state))
        state = played[-1].state
    return played


def as_bytes(played: Round) -> str:
    """The rows of a round as the ledger would hold them."""
    return json.dumps([played.row, played.clients])


def reply(client: int = 0, weights: Weights | None = None, num_examples: int = 1, **changes: Any) -> Reply:
    """An honest reply to round 1."""
    base = Reply(client=client, round=1, payload=Payload(weights=weights), num_examples=num_examples)
    return replace(base, **changes)


def fit(client: Client, job: Job, site: LocalSite) -> Reply:
    """The reply of a client that must not fail: at the site itself if it is the site's own, else at one like it."""
    found = (site if client is site.client else replace(site, client=client)).run(job)
    assert isinstance(found, Reply), found.detail
    return found


def predict(client: Client, student: Student, x: Tensor, job: Job) -> Tensor:
    """The logits that a job judges."""
    predictor = client.predictor(job)
    logits: Tensor = predictor(predictor.members(student), x)
    return logits


def canonical(value: Any) -> Any:
    """A value in a form that `==` compares to the last bit: tensors as dtype, shape and bytes."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, {f.name: canonical(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return repr(value)


def lasting(reply: Reply) -> Any:
    """All of a reply but the time it took, for `==`."""
    return canonical(replace(reply, seconds=0.0))


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit, of two values that `canonical` or `lasting` gave; else says where they part."""
    if one != other:
        raise AssertionError(f"differs at {'/'.join(_parting(one, other)) or 'the top'}")


def _parting(one: Any, other: Any) -> Iterator[str]:
    """The keys on the way to the first difference."""
    if type(one) is not type(other) or not isinstance(one, dict | list | tuple) or len(one) != len(other):
        return
    keys = one if isinstance(one, dict) else range(len(one))
    for key in keys:
        if isinstance(other, dict) and key not in other:
            yield f"{key} (missing)"
            return
        if one[key] != other[key]:
            yield str(key)
            yield from _parting(one[key], other[key])
            return


def assert_same_weights(one: Weights | Student | Reply, other: Weights | Student | Reply) -> None:
    """Equal names and equal bytes."""
    first, second = _weights(one), _weights(other)
    assert list(first) == list(second)
    different = [name for name in first if canonical(first[name]) != canonical(second[name])]
    assert not different, f"entries differ: {different}"


def _weights(value: Weights | Student | Reply) -> Weights:
    if isinstance(value, Reply):
        assert value.payload.weights is not None
        return value.payload.weights
    return value.weights if isinstance(value, Student) else value
