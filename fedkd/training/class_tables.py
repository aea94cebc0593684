"""Tables: one row per label, the mean of a student's outputs on that label's samples, and which rows are known.

K clients, C classes, m columns (C logits, or the d coordinates of a latent), S samples. An unknown row has weight 0 and
holds zeros; users leave it out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedkd.client import Client
from fedkd.engine import ClientId, Job, Reply
from fedkd.maths import fusion
from fedkd.participation import Batch, LocalBatches, Outcome, Site
from fedkd.payload import Payload
from fedkd.student import Student

Mean = Literal["holders", "examples", "senders"]  # which clients a row averages, and whether by their samples


@dataclass
class HeadOutputs:
    """Inputs and outputs of a student's head during training, without gradient: the first pass of each step."""

    passes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # z (B, d) and logits (B, C) by step
    step: int = 0

    def start(self, batch: Batch) -> None:
        """Start a step: its first pass is recorded. Later passes are those of parts, on other images."""
        self.step = batch.step
        self.passes.pop(batch.step, None)

    def latents(self, start: int = 0) -> Tensor:
        """z (S, d) of all samples from step `start` on."""
        return torch.cat([z for step, (z, _) in sorted(self.passes.items()) if step >= start])

    def logits(self) -> Tensor:
        """Logits (S, C) of all samples, in the order of the steps."""
        return torch.cat([logits for _, (_, logits) in sorted(self.passes.items())])


@contextmanager
def recording(student: Student) -> Iterator[HeadOutputs]:
    """Record passes through the head while open: terms stay pure, and nothing is computed twice."""
    outputs = HeadOutputs()

    def note(head: torch.nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        outputs.passes.setdefault(outputs.step, (inputs[0].detach(), logits.detach()))

    handle = student.get_submodule("head").register_forward_hook(note)
    try:
        yield outputs
    finally:
        handle.remove()


def fit_recording(
    client: Client, site: Site, job: Job, student: Student, drawn: LocalBatches
) -> tuple[Outcome, HeadOutputs]:
    """The default local update, `Site.fit`, and the recorded outputs of the head; callers complete the payload."""
    with recording(student) as outputs:

        def terms(batch: Batch) -> Iterator[tuple[str, Tensor]]:
            outputs.start(batch)
            return client.terms(student, batch, job)

        outcome = site.fit(client, job, student, batches=drawn, terms=terms)
    return outcome, outputs


def sums(values_Sm: Tensor, y_S: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum of the values of each label (C, m), and how many there are (C,) int64."""
    sums_Cm = torch.zeros(classes, values_Sm.shape[1], dtype=values_Sm.dtype).index_add_(0, y_S, values_Sm)
    return sums_Cm, torch.bincount(y_S, minlength=classes)


def means(sums_Cm: Tensor, counts_C: Tensor, first_count: float = 0.0) -> Tensor:
    """Sums divided by count + `first_count`, (C, m); zeros where the count is 0."""
    known_C1 = counts_C[:, None] > 0
    return torch.where(known_C1, sums_Cm / (counts_C[:, None].clamp(min=1).to(sums_Cm.dtype) + first_count), 0.0)


def weigh(counts_KC: Tensor, mean: Mean) -> Tensor:
    """The weight of a client's row in a mean, (K, C) int64: equal (`holders`) or by samples (`examples`) over holders.

    `senders`: equal over all clients, including zero rows of non-holders; a label without a holder stays unknown.
    """
    if mean == "examples":
        return counts_KC
    held_KC = counts_KC > 0
    return (held_KC if mean == "holders" else held_KC.any(0).expand_as(held_KC)).long()


def combine(values_KCm: Tensor, weights_KC: Tensor) -> tuple[Tensor, Tensor]:
    """The mean row of each label (C, m), and the sum of its weights (C,); 0 marks an unknown row."""
    total_Cm = (values_KCm.double() * weights_KC[..., None]).sum(0)
    weight_C = weights_KC.sum(0)
    return means(total_Cm, weight_C).to(values_KCm.dtype), weight_C


def without_own(values_KCm: Tensor, weights_KC: Tensor) -> tuple[Tensor, Tensor]:
    """For each client, `combine` over the tables of all others: (K, C, m) and (K, C)."""
    weighted_KCm = values_KCm.double() * weights_KC[..., None]
    total_KCm = weighted_KCm.sum(0) - weighted_KCm
    weight_KC = weights_KC.sum(0) - weights_KC
    mean_KCm = torch.where(weight_KC[..., None] > 0, total_KCm / weight_KC.clamp(min=1)[..., None], 0.0)
    return mean_KCm.to(values_KCm.dtype), weight_KC


@dataclass(frozen=True)
class Tables:
    """The tables of one round's clients, stacked; empty before the first round."""

    clients: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # (K,) ascending
    values: Tensor = field(default_factory=lambda: torch.empty(0))  # (K, C, m)
    weights: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # (K, C)


def gather(replies: Sequence[Reply], mean: Mean) -> Tables:
    """The tables of class logits in the replies, which are in order of client."""
    clients, weights_KC = [reply.client for reply in replies], weigh(fusion.stacked(replies, "label_counts"), mean)
    return Tables(torch.tensor(clients), fusion.stacked(replies, "class_logits"), weights_KC)


def payloads(
    tables: Tables, cohort: Iterable[ClientId], leave_one_out: bool, make: Callable[[Tensor, Tensor], Payload]
) -> Mapping[ClientId, Payload]:
    """Payloads of the mean table (C, m) and its weights (C,); with `leave_one_out`, each without the client's own."""
    overall = make(*combine(tables.values, tables.weights))
    if not leave_one_out:
        return dict.fromkeys(cohort, overall)
    others_KCm, weights_KC = without_own(tables.values, tables.weights)
    place = {client: k for k, client in enumerate(tables.clients.tolist())}
    # Cloned: a view sent to a worker carries the tables of all clients with it.
    return {
        client: make(others_KCm[place[client]].clone(), weights_KC[place[client]].clone())
        if client in place
        else overall
        for client in cohort
    }


def describe(tables: Tables) -> dict[str, float]:
    """For the ledger: the number of known labels, and the share of their rows that are largest at their own label."""
    table_CC, weight_C = combine(tables.values, tables.weights)
    known_C = weight_C > 0
    right_C = table_CC.argmax(1) == torch.arange(len(table_CC))
    known = int(known_C.sum())
    return {"labels_known": float(known), "table_accuracy": float((right_C & known_C).sum()) / max(1, known)}
