"""Local training and evaluation: the hot path. A LocalSite does jobs for the clients whose data it can reach."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd import engine, seeds
from fedkd.client import Client
from fedkd.config import TrainConfig
from fedkd.data.samples import Samples
from fedkd.engine import ClientState, Failure, Job, Reply, Result
from fedkd.participation import Batch, LocalBatches, Outcome, Terms, Trained
from fedkd.payload import Weights
from fedkd.problem import Problem
from fedkd.student import Student, copied
from fedkd.training import augment, forward, optimisers, sample_order
from fedkd.training.optimisers import LocalOptimiser


@dataclass(frozen=True)
class LocalSite:
    """Runs jobs: it has the problem, the client half and the samples in reach.

    Train and test indices are by client; a site on a device has only its own client's, and no pooled test set.
    """

    problem: Problem
    client: Client
    train: Samples
    test: Samples
    train_index: Mapping[int, Tensor]
    test_index: Mapping[int, Tensor]
    probe: Tensor | None = None  # (N, channels, height, width) float: images on which function drift is measured
    common: Tensor | None = None  # (N,) int64: test images on which every client's own student is evaluated

    def run(self, job: Job) -> Result:
        """Do one job. An exception of the algorithm becomes a Failure; interrupts pass."""
        start = time.perf_counter()
        try:
            reply = self._train(job) if job.task == "train" else self._evaluate(job)
        except Exception as error:  # noqa: BLE001  # the border: one client must never stop another
            return engine.failure(job, error)
        return reply if isinstance(reply, Failure) else replace(reply, seconds=time.perf_counter() - start)

    # --- the steps of a participation, which algorithms with several phases combine themselves ---------------------

    def fit(
        self,
        client: Client,
        job: Job,
        student: Student | None = None,
        *,
        learnable: Mapping[str, Tensor] | None = None,
        batches: LocalBatches | None = None,
        terms: Terms | None = None,
    ) -> Outcome:
        """Local training, then the client's report: the default participation.

        By default it trains all parameters of the job's student, along the client's terms, on the batches of this
        participation. A given `student` is in train mode.
        """
        trained = self.student(job).train() if student is None else student
        drawn = self.draw(job) if batches is None else batches
        optimiser = self.optimiser(job, trained.learnable if learnable is None else learnable)
        per_sample = client.precompute(self, job, drawn.x, drawn.y, drawn.position)
        terms = terms or (lambda batch: client.terms(trained, batch, job))
        numbers = optimisers.minimise(optimiser, self.batches(client, job, drawn, per_sample), terms)
        return self.close(client, job, trained, drawn, numbers, optimiser)

    def draw(self, job: Job, train: TrainConfig | None = None) -> LocalBatches:
        """The training samples of this participation, augmented; `train` replaces the steps and the batch size."""
        index = self.train_index[job.client]
        config = train or self.problem.train
        steps, epoch, offset = sample_order.draw_batches(self.problem.seed, config, job, len(index))
        position = torch.cat(steps)
        x, y = self.augmented(job, index[position])
        return LocalBatches(x, y, position, tuple(map(len, steps)), epoch, offset)

    def augmented(self, job: Job, index: Tensor) -> tuple[Tensor, Tensor]:
        """Training samples at `index` and their labels, scaled and augmented as configured."""
        x, y = self.train.take(index)
        return augment.augmented(self.problem, job, x, self.train.offset), y

    def batches(
        self, client: Client, job: Job, drawn: LocalBatches, per_sample: Mapping[str, Tensor] | None = None
    ) -> Iterator[Batch]:
        """The steps of `drawn`, each with the client's random tensors for it and its rows of `per_sample`."""
        noise = seeds.stream(self.problem.seed, "noise", round=job.round, client=job.client).child(job.exchange).torch()
        start, per_sample = 0, per_sample or {}
        for step, size in enumerate(drawn.sizes):
            rows = slice(start, start + size)
            y = drawn.y[rows]
            chosen = {name: value[rows] for name, value in per_sample.items()}
            yield Batch(drawn.x[rows], y, step, self.problem.train.batch, client.draw(job, y, step, noise), chosen)
            start += size

    def optimiser(
        self, job: Job, learnable: Mapping[str, Tensor], memory: Mapping[str, Any] | None = None
    ) -> LocalOptimiser:
        """The configured optimiser, with the moments that the client keeps, or those of `memory` (empty: none)."""
        config = self.problem.train
        moments = job.state.optimiser if memory is None else memory
        return LocalOptimiser(config, learnable, optimisers.learning_rate(self.problem, job), moments)

    def close(
        self,
        client: Client,
        job: Job,
        student: Student,
        drawn: LocalBatches | None,
        numbers: Mapping[str, float],
        optimiser: LocalOptimiser | None = None,
    ) -> Outcome:
        """State and report after training; `drawn` is None for a phase that drew no training samples.

        `numbers` are the means of the terms. Empty ones mean that nothing was trained: the probe images get no labels.
        """
        trained = self.trained(client, job, student, drawn)
        received, state = job.payload.weights or {}, job.state
        after = ClientState(
            kept=copied({name: entry for name, entry in student.entries.items() if name not in received}),
            memory=client.next_memory(trained, job),
            optimiser=optimiser.memory() if optimiser is not None else state.optimiser,
            epoch=drawn.epoch if drawn is not None else state.epoch,
            position=drawn.offset if drawn is not None else state.position,
            last_round=job.round,
        )
        return Outcome(client.report(trained, job), after, numbers, student if numbers else None)

    def trained(self, client: Client, job: Job, student: Student, drawn: LocalBatches | None) -> Trained:
        """The argument of `Client.next_memory` and `Client.report`."""
        problem = self.problem.of(job.client)
        labels = drawn.y if drawn is not None else torch.empty(0, dtype=torch.int64)
        memory = job.state.memory or client.init(problem, seeds.stream(problem.seed, "memory", client=job.client))
        return Trained(
            student=student,
            labels_drawn=torch.bincount(labels, minlength=problem.classes),
            num_examples=len(self.train_index[job.client]),
            memory=memory,
            site=self,
            steps=len(drawn.sizes) if drawn is not None else 0,
            lr=optimisers.learning_rate(problem, job),
        )

    def label_counts(self, client: int) -> Tensor:
        """How many training samples of each label the client holds, (C,) int64."""
        return torch.bincount(self.train.y[self.train_index[client]], minlength=self.problem.classes)

    def own(self, client: int) -> tuple[Tensor, Tensor]:
        """All training samples of a client in stored order: images, scaled, and labels."""
        return self.train.take(self.train_index[client])

    def student(self, job: Job) -> Student:
        """The student of a job: initial entries, overwritten by the client's kept entries, then by the received ones.

        One module serves all clients of an architecture: building one costs more than loading its entries.
        """
        client = None if job.task == "evaluate_pooled" else job.client
        module = self._module(self.problem.architecture(client), "student")
        return module.load(self.initial(client), job.state.kept, job.payload.weights or {})

    def frozen(self, client: int | None, *layers: Weights, role: str = "frozen") -> Student:
        """A second, frozen student: initial entries, then `layers`. The next call with this `role` overwrites it."""
        return self._module(self.problem.architecture(client), role).load(self.initial(client), *layers).eval()

    def beside(self, *layers: Weights) -> Student:
        """A trainable student of the server's: initial entries, then `layers`. The next call overwrites it."""
        return self._module("", "beside").load(self.initial(None), *layers)

    def initial(self, client: int | None) -> Mapping[str, Tensor]:
        """The entries that a client's student starts from."""
        if client is not None and not self.problem.common_init:
            return self.problem.initial(client).weights
        architecture = self.problem.architecture(client)
        if architecture not in self._initial:
            self._initial[architecture] = self.problem.initial(client).weights
        return self._initial[architecture]

    def score(self, client: Client, student: Student, job: Job) -> float:
        """Accuracy of a student on the client's own test split, equal to that of an evaluation job."""
        student.eval()
        index = self.test_index[job.client]
        return int(self._classify(client, student, job, index)[0].sum()) / len(index)

    @torch.inference_mode()
    def predict(self, client: Client, student: Student, job: Job, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels of the test samples at `index`, batch by batch; the student is in eval mode."""
        predictor = client.predictor(job)
        members = predictor.members(student)
        for part in index.split(forward.EVALUATION_BATCH):
            x, y = self.test.take(part)
            yield predictor(members, x), y

    def _module(self, architecture: str, role: str) -> Student:
        key = (architecture, role)
        if key not in self._modules:
            self._modules[key] = self.problem.alike(architecture).initial()
        return self._modules[key]

    @cached_property
    def _modules(self) -> dict[tuple[str, str], Student]:
        return {}  # no field: engines rebuild a site from its fields

    @cached_property
    def _initial(self) -> dict[str, Mapping[str, Tensor]]:
        return {}

    def _train(self, job: Job) -> Result:
        if not len(self.train_index[job.client]):
            return engine.failed(job, f"client {job.client} has no training samples", "no_data")
        draws = seeds.stream(self.problem.seed, "layers", round=job.round, client=job.client).child(job.exchange)
        with draws.as_global():  # dropout draws from it
            outcome = self.client.train(self, job)
        size, probe = outcome.num_examples, None
        if self.probe is not None and outcome.student is not None:
            with torch.inference_mode():
                probe = outcome.student.eval()(self.probe).argmax(1).to(torch.uint8)
        return Reply(
            client=job.client,
            round=job.round,
            exchange=job.exchange,
            payload=outcome.payload,
            state=outcome.state,
            num_examples=len(self.train_index[job.client]) if size is None else size,
            numbers=outcome.numbers,
            probe=probe,
        )

    def _evaluate(self, job: Job) -> Result:
        if job.task == "evaluate_shared":
            return self._evaluate_shared(job)
        index = self._test_of(job)
        if not len(index):
            return engine.failed(job, f"client {job.client} has no test samples", "no_data")
        right_C, loss_sum, logits = self._classify(self.client, self.student(job).eval(), job, index)
        by_label = None  # on a client's own test split it would reveal the labels
        if job.task != "evaluate":
            by_label = torch.stack([torch.bincount(self.test.y[index], minlength=self.problem.classes), right_C])
        return Reply(
            client=job.client,
            round=job.round,
            task=job.task,
            num_examples=len(index),
            numbers={"correct": float(right_C.sum()), "loss_sum": loss_sum},
            by_label=by_label,
            logits=logits,
        )

    def _evaluate_shared(self, job: Job) -> Result:
        parts = [self.test_index[client] for client in job.clients]
        student, index = self.student(job).eval(), torch.cat(parts)
        batches = self.predict(self.client, student, job, index)
        outcomes = [(logits.argmax(1) == y, F.cross_entropy(logits, y, reduction="none")) for logits, y in batches]
        sizes = torch.tensor([len(part) for part in parts])
        owner = torch.arange(len(parts)).repeat_interleave(sizes)
        sums = [torch.bincount(owner, torch.cat(values).double(), len(parts)) for values in zip(*outcomes, strict=True)]
        judged = torch.stack([sizes.double(), *sums], 1)
        return Reply(client=job.client, round=job.round, task=job.task, num_examples=len(index), judged=judged)

    def _test_of(self, job: Job) -> Tensor:
        if job.task == "evaluate":
            return self.test_index[job.client]
        if job.task == "evaluate_common":
            return self.common if self.common is not None else torch.empty(0, dtype=torch.int64)
        return forward.pooled_part(job.client, len(self.test))

    def _classify(
        self, client: Client, student: Student, job: Job, index: Tensor
    ) -> tuple[Tensor, float, Tensor | None]:
        """Correct test samples by label, (C,) int64, the sum of all losses and, if the job wants them, the logits."""
        right_C, loss_sum = torch.zeros(self.problem.classes, dtype=torch.int64), 0.0
        kept: list[Tensor] = []
        for logits, y in self.predict(client, student, job, index):
            right_C += torch.bincount(y[logits.argmax(1) == y], minlength=self.problem.classes)
            loss_sum += float(F.cross_entropy(logits, y, reduction="sum"))
            kept += [logits.float()] if job.wants_logits else []
        return right_C, loss_sum, torch.cat(kept) if kept else None
