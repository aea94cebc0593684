"""Students and jobs for the tests of FedD2S: builders, no fixtures."""

from collections import OrderedDict
from dataclasses import replace

import tiny
import torch
from torch import nn

from clients.fedd2s import FedD2S
from fedkd import seeds
from fedkd.config import EvaluateConfig
from fedkd.distillation import heads
from fedkd.engine import ClientState, Job, Reply
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.strategy import Cohort
from fedkd.student import Student
from fedkd.training.site import LocalSite
from strategies import fedd2s as server

STREAM = seeds.stream(0, "test")
SIZES = (20, 12, 7)  # of the clients' data
SIZE = SIZES[0]
TAPS = {1: (2, 2, 2), 2: (tiny.LATENT,), 3: (tiny.LATENT,)}  # of `deep`, by depth
TRAIN = replace(tiny.TRAIN, steps=None, epochs=2, momentum=0.9, weight_decay=0.01)


def deep() -> Student:
    """Three blocks without normalisation: conv, hidden, head."""
    conv = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU())
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(8, tiny.LATENT), nn.ReLU())
    return Student(OrderedDict(conv=conv, hidden=hidden, head=nn.Linear(tiny.LATENT, tiny.CLASSES)))


def wide() -> Student:
    """Two more blocks, whose first tap has the shape of `deep`'s second."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    blocks["hidden"] = nn.Sequential(nn.Flatten(), nn.Linear(tiny.SIDE**2, tiny.LATENT), nn.ReLU())
    for name in ("second", "third"):
        blocks[name] = nn.Sequential(nn.Linear(tiny.LATENT, tiny.LATENT), nn.ReLU())
    return Student(OrderedDict(blocks, head=nn.Linear(tiny.LATENT, tiny.CLASSES)))


def fedd2s(**changes) -> FedD2S:
    return FedD2S(FedD2S.Config(**changes))


def task(**changes) -> Problem:
    return tiny.problem(**{"make": deep, "rounds": 6, "train": TRAIN, **changes})


def site(client=None, problem=None) -> LocalSite:
    return tiny.site(client or fedd2s(), problem or task())


def table(rows=SIZE, seed=1, scale=3.0):
    return scale * torch.randn(rows, tiny.CLASSES, generator=seeds.stream(seed, "table").torch())


def job(depth: int, *, samples=None, state=None, generator=None, number=1, exchange=0) -> Job:
    samples = None if samples is None else {"logits": samples}
    return Job(
        task="train",
        client=0,
        round=number,
        exchange=exchange,
        payload=Payload(samples=samples, numbers={"depth": float(depth)} if depth else None, generator=generator),
        state=state or ClientState(),
    )


def first_batch(at: LocalSite, told: Job, size=8) -> Batch:
    """The first samples in stored order with what is known of them."""
    index = at.train_index[0][:size]
    x, y = at.train.take(index)
    per_sample = at.client.precompute(at, told, x, y, torch.arange(size))
    return Batch(x, y, 0, size, per_sample=per_sample)


def with_head(at: LocalSite, told: Job) -> Job:
    """The job after a round without learning: its local head is there, as new."""
    student = at.problem.initial()
    tap = heads.tap(student, told.payload.numbers["depth"].__int__())
    shape = heads.shapes(at.problem)[tap]
    live = heads.trainable(heads.build(at.problem, int(told.payload.numbers["depth"]), "tail", shape, STREAM).weights)
    return replace(told, state=replace(told.state, memory={"heads": {tap: live}}))


def gradients(client, at, told, student, batch):
    loss = sum(value for _, value in client.terms(student, batch, told))
    named = dict(student.learnable)
    for entries in told.state.memory.get("heads", {}).values():
        named |= {f"local.{n}": e for n, e in entries.items() if e.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), dict(zip(named, found, strict=True))


def replace_generator(payload: Payload, entries) -> Payload:
    return Payload(
        samples=payload.samples,
        numbers=payload.numbers,
        generator={name: entry.detach() for name, entry in entries.items()},
    )


def one_block() -> Student:
    return Student(OrderedDict(head=nn.Linear(4, tiny.CLASSES)))


def strategy(**changes) -> server.FedD2S:
    return server.FedD2S(server.FedD2S.Config(**{"server_batch": 8, **changes}))


def begun(half: server.FedD2S, problem: Problem | None = None) -> server.State:
    return half.init(problem or task(), STREAM)


def ordered(half: server.FedD2S, state, client=0, number=1, exchange=0) -> Job:
    payload = half.plan(state, Cohort((0, 1, 2), number, exchange))[client]
    return Job(task="train", client=client, round=number, exchange=exchange, payload=payload)


def reply(client=0, depth=3, rows=None, seed=0, number=1, **samples) -> Reply:
    rows = SIZES[client] if rows is None else rows
    draw = seeds.stream(seed, "reply", client=client).torch()
    found = {
        "taps": torch.randn(rows, *TAPS[depth], generator=draw),
        "logits": torch.randn(rows, tiny.CLASSES, generator=draw),
        "labels": (torch.arange(rows) % tiny.CLASSES).to(torch.uint8),
    }
    payload = Payload(samples={**found, **samples}, numbers={"depth": float(depth)})
    return Reply(client=client, round=number, payload=payload, num_examples=SIZES[client])


def run(half: server.FedD2S, count: int, client=None, problem=None, **config):
    problem = problem or task()
    where = tiny.site(client or FedD2S(), problem)
    engine = tiny.FakeEngine(where)
    config = {"evaluate": EvaluateConfig(probe=0, common=0), **config}
    return tiny.play(tiny.experiment(half, where, **config), engine, count), engine
