"""Two scalar clients: losses a/2 (w - b)^2 whose optimum is known, and the ways to it.

Tests hold golden numbers of them: worked out from the papers' equations, apart from this code.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tiny
import torch
from torch import Tensor

from fedkd import rounds
from fedkd.client import Client
from fedkd.config import EvaluateConfig, TrainConfig
from fedkd.engine import Job
from fedkd.experiment import RunState
from fedkd.participation import Batch
from fedkd.payload import Weights
from fedkd.rounds import Round
from fedkd.strategy import Strategy
from fedkd.student import Student

LAWS = ((1.0, 0.0), (2.0, 3.0))  # a, b of each client; the optimum of the uniform sum is 2
ENTRY = "head.bias"  # its first element is the scalar w; nothing else has a gradient


def quadratic(client: Client) -> Client:
    """The client, its cross entropy replaced by its quadratic."""

    class Quadratic(type(client)):  # type: ignore[misc]
        def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
            a, b = LAWS[job.client]
            yield "ce", 0.5 * a * (student.learnable[ENTRY][0] - b).square()
            yield from ((name, value) for name, value in super().terms(student, batch, job) if name != "ce")

    return Quadratic(client.config)


def play(strategy: Strategy[Any], client: Client, count: int, **train: Any) -> list[Round]:
    """`count` rounds of both clients from w = 1, three exact-gradient steps of 0.1 each; equal sizes."""
    problem = tiny.problem(clients=2, rounds=count, train=replace(TrainConfig(batch=4, steps=3, lr=0.1), **train))
    site = tiny.site(quadratic(client), problem, sizes=(4, 4))
    never = EvaluateConfig(every=10**6, pooled_every=10**6, probe=0)
    experiment = tiny.experiment(strategy, site, rounds=10**6, evaluate=never)
    engine, state, played = tiny.FakeEngine(site), start(rounds.begin(experiment)), []
    for _ in range(count):
        played.append(rounds.run_round(experiment, engine, state))
        state = played[-1].state
    return played


def start(state: RunState) -> RunState:
    """The state with w = 1."""
    weights = dict(state.server.weights)
    weights[ENTRY] = torch.ones_like(weights[ENTRY])
    return replace(state, server=replace(state.server, weights=weights))


def scalar(weights: Weights) -> float:
    return float(weights[ENTRY][0])
