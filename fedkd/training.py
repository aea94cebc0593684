"""Local training and evaluation: the hot path. A Site does jobs for the clients whose data it can reach."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd import engine, seeds
from fedkd.client import Batch, Client, Trained
from fedkd.config import TrainConfig
from fedkd.data.samples import Samples
from fedkd.engine import ClientState, Failure, Job, Reply, Result
from fedkd.optimisers import Sgd
from fedkd.payload import Payload
from fedkd.problem import Problem
from fedkd.student import Student

EVALUATION_BATCH = 250  # fixed: float sums depend on it; larger batches leave the cache


@dataclass(frozen=True)
class Outcome:
    """What one participation gave."""

    payload: Payload
    state: ClientState
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Site:
    """Where jobs run: the problem, the client half and the samples in reach.

    Train and test indices are by client; a site on a device has its own client's only, and no pooled test set.
    """

    problem: Problem
    client: Client
    train: Samples
    test: Samples
    train_index: Mapping[int, Tensor]
    test_index: Mapping[int, Tensor]
    probe: Tensor | None = None  # (N, channels, height, width) float: images on which function drift is measured

    def run(self, job: Job) -> Result:
        """Do one job. Whatever the algorithm raises becomes a Failure; interrupts pass."""
        start = time.perf_counter()
        try:
            reply = self._train(job) if job.task == "train" else self._evaluate(job)
        except Exception as error:  # noqa: BLE001  # the border: one client must never stop another
            return engine.failure(job, error)
        return reply if isinstance(reply, Failure) else replace(reply, seconds=time.perf_counter() - start)

    def fit(self, client: Client, job: Job) -> Outcome:
        """Local SGD on the client's terms, then its report: the default participation."""
        problem, config = self.problem, self.problem.train
        student = self.student(job).train()
        index = self.train_index[job.client]
        batches, epoch, position = draw_batches(problem.seed, config, job, len(index))
        x, y = self.train.take(index[torch.cat(batches)])
        noise = seeds.stream(problem.seed, "noise", round=job.round, client=job.client).child(job.exchange).torch()
        sgd = Sgd(list(student.parameters()), learning_rate(config, job), config.momentum, config.weight_decay)
        sums: dict[str, Tensor] = {}
        start = 0
        for step, drawn in enumerate(batches):
            stop = start + len(drawn)
            y_step = y[start:stop]
            batch = Batch(x[start:stop], y_step, step, config.batch, client.draw(job, y_step, step, noise))
            loss = None
            for name, value in client.terms(student, batch, job):
                loss = value if loss is None else loss + value
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            if loss is None:
                raise ValueError(f"{type(client).__name__}.terms yielded nothing: there is no loss")
            sgd.step(torch.autograd.grad(loss, sgd.parameters, allow_unused=True))
            start = stop
        memory = job.state.memory or client.init(problem, seeds.stream(problem.seed, "memory", client=job.client))
        trained = Trained(student, torch.bincount(y, minlength=problem.classes), len(index), memory)
        received = job.payload.weights or {}
        state = ClientState(
            kept={name: value for name, value in student.weights.items() if name not in received},
            memory=client.remember(trained, job),
            epoch=epoch,
            position=position,
            last_round=job.round,
        )
        numbers = {name: float(value) / len(batches) for name, value in sums.items()}
        return Outcome(client.report(trained, job), state, numbers)

    def student(self, job: Job) -> Student:
        """The client's student: initial entries, over them what it kept, over them what it received.

        One module serves all clients of a site: building one costs more than loading its entries.
        """
        return self._student.load(self._initial, job.state.kept, job.payload.weights or {})

    @cached_property
    def _student(self) -> Student:
        return self.problem.initial()

    @cached_property
    def _initial(self) -> Mapping[str, Tensor]:
        return self.problem.initial().weights

    def _train(self, job: Job) -> Result:
        if not len(self.train_index[job.client]):
            return engine.failed(job, f"client {job.client} has no training samples", "no_data")
        outcome = self.client.train(self, job)
        probe = None
        if self.probe is not None:
            with torch.inference_mode():  # the site's module still is this client's student
                probe = self._student.eval()(self.probe).argmax(1).to(torch.uint8)
        return Reply(
            client=job.client,
            round=job.round,
            exchange=job.exchange,
            payload=outcome.payload,
            state=outcome.state,
            num_examples=len(self.train_index[job.client]),
            numbers=outcome.numbers,
            probe=probe,
        )

    def _evaluate(self, job: Job) -> Result:
        index = self.test_index[job.client] if job.task == "evaluate" else pooled_part(job.client, len(self.test))
        if not len(index):
            return engine.failed(job, f"client {job.client} has no test samples", "no_data")
        student = self.student(job).eval()
        correct, loss_sum = 0, 0.0
        with torch.inference_mode():
            for part in index.split(EVALUATION_BATCH):
                x, y = self.test.take(part)
                logits = student(x)
                correct += int((logits.argmax(1) == y).sum())
                loss_sum += float(F.cross_entropy(logits, y, reduction="sum"))
        numbers = {"correct": float(correct), "loss_sum": loss_sum}
        return Reply(client=job.client, round=job.round, task=job.task, num_examples=len(index), numbers=numbers)


POOLED_PART = 2500  # samples of the pooled test set a job evaluates


def num_pooled_parts(num_samples: int) -> int:
    """Jobs that one evaluation on the pooled test set takes."""
    return -(-num_samples // POOLED_PART)


def pooled_part(part: int, num_samples: int) -> Tensor:
    """The indices of one part of the pooled test set."""
    return torch.arange(part * POOLED_PART, min((part + 1) * POOLED_PART, num_samples))


def learning_rate(config: TrainConfig, job: Job) -> float:
    """lr * decay^t, t counted from 0: of this round, or of the client's last one (FedGen's code, fedgen.md 1.6)."""
    if config.lr_clock == "round":
        return config.lr * config.lr_decay ** (job.round - 1)
    return config.lr * config.lr_decay ** max(job.state.last_round - 1, 0)


def draw_batches(seed: int, config: TrainConfig, job: Job, num_samples: int) -> tuple[list[Tensor], int, int]:
    """Index batches of one participation, and the epoch and position where the next begins.

    Passes go on where the last participation stopped; a pass ends with a short batch, never dropped. The order of
    epoch e depends on (seed, client, e) alone, so all strategies see the same batches.
    """
    epoch, position = job.state.epoch, job.state.position
    if config.steps is None:
        epoch, position = (epoch + 1, 0) if position else (epoch, 0)
    total = config.steps if config.steps is not None else config.epochs * -(-num_samples // config.batch)
    batches: list[Tensor] = []
    order = None
    for _ in range(total):
        if order is None:
            generator = seeds.stream(seed, "batches", round=epoch, client=job.client).torch()
            order = torch.randperm(num_samples, generator=generator)
        batches.append(order[position : position + config.batch])
        position += config.batch
        if position >= num_samples:
            epoch, position, order = epoch + 1, 0, None
    return batches, epoch, position
