"""KnFu without a public set, server half: tables of mean logits by label, fused for each client from similar owners.

Our design (docs/strategies/knfu-table.md) on what is known of Seyedmohammadi et al., arXiv 2403.11892: nothing of it is
in the paper. Client half: knfu-table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedkd.engine import ClientId, Reply
from fedkd.maths import affinity, fusion
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy


@dataclass(frozen=True)
class Teacher:
    """What one client is taught in its next round. C classes."""

    logits: Tensor  # (C, C): log F_k, rows by true label; rows without a source are 0
    owners: Tensor  # (C,) int64: how many clients contribute to a row; 0: none


@dataclass(frozen=True)
class State:
    """By client: what it receives in its next participation."""

    teachers: Mapping[int, Teacher]
    round: int  # rounds aggregated


class KnFuTable(Strategy[State]):
    needs = frozenset({"class_logits", "label_counts"})
    gives = frozenset({"class_logits", "label_counts"})
    knowledge = "mean logits by label, fused for each client"
    works_across_students = True
    serves = "personal"
    paper = "our data-free form of Seyedmohammadi et al., arXiv 2403.11892"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        epd: Literal["reported", "class_table"] = "reported"  # what clients are compared by: counts, or tables
        pseudo_count: Annotated[int, Ge(0), Le(1)] = 1  # added to each reported count
        divergence: Literal["kl", "kl_rev", "js", "l1", "l2", "cos"] = "kl"  # kl: receiver || sender
        beta: Annotated[float, Ge(0)] | Literal["inf"] = 10.0  # paper: 10, of an unknown distance; 0: all owners equal
        include_self: bool = False  # whether a client's own table is part of its teacher
        top_m: Annotated[int, Ge(1)] | None = None  # only this many nearest owners of a label count; null: all
        min_owned: Annotated[int, Ge(1)] = 1  # a client needs this many samples of a label to teach it
        temperature: Annotated[float, Gt(0)] = 1.0  # of teacher and student

    def init(self, problem: Problem, stream: Stream) -> State:
        return State({}, 0)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        without = Payload()
        payloads = {}
        for key, teacher in {id(teacher): teacher for teacher in state.teachers.values()}.items():
            payloads[key] = Payload(class_logits=teacher.logits, label_counts=teacher.owners)
        return {client: payloads.get(id(state.teachers.get(client)), without) for client in cohort}

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        tables_KCC, counts_KC = stack(replies)
        owns_KC = counts_KC >= self.config.min_owned
        W_CKK = self._weights(tables_KCC, counts_KC, owns_KC)
        fused_KCC = fuse(tables_KCC, owns_KC, W_CKK, self.config.temperature)
        fresh = teachers([reply.client for reply in replies], W_CKK, fused_KCC)
        findings = affinity.describe(W_CKK, torch.arange(len(replies)))
        after = replace(state, teachers={**state.teachers, **fresh}, round=replies[0].round)
        return after, {**findings, **measure(W_CKK, fused_KCC, owns_KC)}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None  # each client has a student of its own

    def _weights(self, tables_KCC: Tensor, counts_KC: Tensor, owns_KC: Tensor) -> Tensor:
        """W (C, K, K): for each label, a receiver's trust in each owner of the label."""
        config = self.config
        if config.epd == "reported":
            law_KC = affinity.reported(counts_KC, config.pseudo_count)
            D_KK = affinity.distance(law_KC, config.divergence)
        else:
            D_KK = affinity.table_distance(tables_KCC.double().softmax(-1), owns_KC, config.divergence)
        return affinity.weights(
            D_KK,
            math.inf if config.beta == "inf" else config.beta,
            include_self=config.include_self,
            top=config.top_m,
            allowed=owns_KC.T[:, None],
        )


def stack(replies: Sequence[Reply]) -> tuple[Tensor, Tensor]:
    """The clients' tables (K, C, C) and label counts (K, C)."""
    return fusion.stacked(replies, "class_logits"), fusion.stacked(replies, "label_counts")


def fuse(tables_KCC: Tensor, owns_KC: Tensor, W_CKK: Tensor, temperature: float) -> Tensor:
    """F (K, C, C): row y of receiver k is sum_j W[y, k, j] softmax(M[j, y] / T), over owners of y; 0 without any."""
    S_KCC = (tables_KCC.double() / temperature).softmax(-1)
    S_KCC = torch.where(owns_KC[..., None], S_KCC, 0.0)
    return fusion.fuse(S_KCC, W_CKK.movedim(0, -1))


def teachers(clients: Sequence[int], W_CKK: Tensor, fused_KCC: Tensor) -> dict[int, Teacher]:
    """Each client's next teacher; receivers with equal weights share one teacher."""
    of_row: dict[bytes, Teacher] = {}
    by_client = {}
    for row, client in enumerate(clients):
        owners = (W_CKK[:, row] > 0).sum(1)
        logits = affinity.as_logits(fused_KCC[row]).masked_fill((owners == 0)[:, None], 0.0)
        by_client[client] = of_row.setdefault(W_CKK[:, row].numpy().tobytes(), Teacher(logits, owners))
    return by_client


def measure(W_CKK: Tensor, fused_KCC: Tensor, owns_KC: Tensor) -> Findings:
    """taught: of the labels that clients own, the share with a teacher; and how often that teacher is right."""
    has_KC = (W_CKK.sum(-1) > 0).T & owns_KC
    right_KC = fused_KCC.argmax(-1) == torch.arange(owns_KC.shape[1])
    taught = int(has_KC.sum())
    return {
        "taught": taught / max(1, int(owns_KC.sum())),
        "teacher_accuracy": int((right_KC & has_KC).sum()) / max(1, taught),
    }
