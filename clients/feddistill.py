"""FedDistill, client half: trains towards the federation's mean output for each sample's label.

Source: Jeong et al., arXiv 1811.11479 (FD), and FedGen's code; docs/strategies/feddistill.md, equations
1 and 3. Server halves: feddistill, feddistill-plus; the latter also exchanges weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import Job
from fedkd.maths import divergences, losses
from fedkd.off import Off
from fedkd.participation import Batch, LocalBatches, Outcome, Site
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.student import Student
from fedkd.training import class_tables
from fedkd.training.class_tables import HeadOutputs


class FedDistill(Client):
    sends = frozenset({"weights", "class_logits", "label_counts"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Client.Config):
        gamma: Annotated[float, Ge(0), Off("plain training")] = 1.0  # weight of the distillation
        loss: Literal["ce", "kl", "mse"] = "kl"  # between the table's row and the student's output; paper: ce
        table: Literal["logit", "prob"] = "logit"  # what rows are means of; paper: prob
        accumulate: Literal["running", "round"] = "running"  # over all participations, or this one; paper: round
        first_count: Annotated[float, Ge(0)] = 1.0  # where counts of samples start, as if of an output 0; paper: 0
        skip_first: bool = True  # no distillation in a client's first participation; paper: false

    def init(self, problem: Problem, stream: Stream) -> Mapping[str, Any]:
        if self.config.accumulate == "round":
            return {}
        classes = problem.classes
        return {"sums": torch.zeros(classes, classes), "counts": torch.zeros(classes, dtype=torch.int64)}

    def terms(self, student: Student, batch: Batch, job: Job) -> Iterator[tuple[str, Tensor]]:
        logits = student(batch.x)
        yield "ce", losses.cross_entropy(logits, batch.y)
        table, counts = job.payload.class_logits, job.payload.label_counts
        is_first = self.config.skip_first and not job.state.last_round
        if table is None or counts is None or is_first or not self.config.gamma:
            return
        known = counts[batch.y] > 0  # a row that no client reported has no term: its zeros would be a uniform target
        if bool(known.any()):
            # The mean is over the whole batch: unknown rows count as 0, so known ones weigh the same with and without.
            share = known.double().mean()
            yield "distil", self.config.gamma * share * self._distance(table[batch.y[known]], logits[known])

    def train(self, site: Site, job: Job) -> Outcome:
        """As `fit`; also sums up by label the outputs that the student gave while it trained, in train mode."""
        drawn = site.draw(job)
        outcome, outputs = class_tables.fit_recording(self, site, job, site.student(job).train(), drawn)
        sums_CC, counts_C = self._add_up(outputs, drawn, outcome.state.memory, site.problem.classes)
        memory = dict(outcome.state.memory)
        if self.config.accumulate == "running":
            memory |= {"sums": sums_CC, "counts": counts_C}
        table_CC = class_tables.means(sums_CC, counts_C, self.config.first_count)
        return replace(
            outcome,
            state=replace(outcome.state, memory=memory),
            payload=replace(outcome.payload, class_logits=table_CC, label_counts=counts_C),
        )

    def _add_up(
        self, outputs: HeadOutputs, drawn: LocalBatches, memory: Mapping[str, Any], classes: int
    ) -> tuple[Tensor, Tensor]:
        """Sums of outputs (C, C) and counts (C,) by label: of this participation, and of remembered ones."""
        outputs_SC = outputs.logits()
        outputs_SC = outputs_SC.softmax(1) if self.config.table == "prob" else outputs_SC
        sums_CC, counts_C = class_tables.sums(outputs_SC, drawn.y, classes)
        if self.config.accumulate == "round":
            return sums_CC, counts_C
        return sums_CC + memory["sums"], counts_C + memory["counts"]

    def _distance(self, rows_BC: Tensor, logits_BC: Tensor) -> Tensor:
        """Mean distance over the batch between rows of the table and logits of the student."""
        is_prob = self.config.table == "prob"
        if self.config.loss == "mse":
            return divergences.mse(rows_BC, logits_BC.softmax(1) if is_prob else logits_BC)
        # With raw logits as its target, cross entropy is unbounded below.
        target_BC = rows_BC / rows_BC.sum(1, keepdim=True) if is_prob else rows_BC.softmax(1)
        if self.config.loss == "kl":
            return losses.kl(target_BC, logits_BC)
        return losses.cross_entropy(logits_BC, target_BC)
