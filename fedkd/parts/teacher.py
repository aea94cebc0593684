"""Distillation from a frozen teacher; a view may keep only a part of its knowledge, to find which part teaches.

Source: Tang et al. 2020 (docs/parts.md). The term is weight * tau^2 * divergence(view of teacher, student).
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.errors import ConfigError
from fedkd.maths import divergences
from fedkd.parts.part import PREFIX, Part, Seen, logits_of
from fedkd.problem import Problem
from fedkd.student import Student

SIMILARITY_TEMPERATURE = 0.3  # eta of view `sim`, on cosines
SIMILARITY_SHARE = 0.3  # share of class similarity in the target

_TARGET = f"{PREFIX}teacher:target"


class Teacher(Part):
    name = "teacher"

    def check(self, problem: Problem) -> None:
        config = self.config
        if config.divergence in divergences.OF_LOGITS and config.view != "full":
            raise ConfigError(
                f"part.teacher.divergence = {config.divergence} compares logits, and view {config.view} has none",
                where="part.teacher",
                mend="use part.teacher.view=full, or choose a divergence of probabilities",
            )

    def prepare(self, teacher: Student, logits_SC: Tensor, y_S: Tensor) -> Mapping[str, Tensor]:
        config = self.config
        if config.divergence in divergences.OF_LOGITS:
            return {}
        p_SC = (logits_SC / config.tau).softmax(1)
        head_Cd = teacher.learnable["head.weight"].detach()
        return {_TARGET: view(config.view, p_SC, y_S, topk=config.topk, head_Cd=head_Cd)}

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        config, teacher_BC = self.config, seen.per_sample.get(logits_of(self.config.teacher))
        if teacher_BC is None:
            return
        if config.divergence in divergences.OF_LOGITS:
            yield self.name, config.weight * divergences.OF_LOGITS[config.divergence](teacher_BC, seen.logits)
            return
        log_q_BC = (seen.logits / config.tau).log_softmax(1)
        distance = divergences.between(config.divergence, seen.per_sample[_TARGET], log_q_BC)
        yield self.name, config.weight * config.tau**2 * distance


def view(kind: str, p_SC: Tensor, y_S: Tensor, *, topk: int | None = None, head_Cd: Tensor | None = None) -> Tensor:
    """The part of the teacher's probabilities that a view keeps, (S, C): rows are >= 0 and sum to 1.

    full: all. ls: label smoothing as strong as the teacher's uncertainty. class: the teacher's mean by label, so only
    relations of classes. sim: cosines of the head's rows. instance: only its confidence in the label. topk: its `topk`
    most likely labels, the rest equal.
    """
    classes = p_SC.shape[1]
    if kind == "ls":
        return smoothed(y_S, 1 - float(p_SC[torch.arange(len(y_S)), y_S].mean()), classes)
    if kind == "class":
        return by_label(p_SC, y_S)[y_S]
    if kind == "sim":
        assert head_Cd is not None
        return similar(head_Cd)[y_S]
    if kind == "instance":
        p_y_S1 = p_SC.gather(1, y_S[:, None])
        rest_SC = ((1 - p_y_S1) / max(1, classes - 1)).expand_as(p_SC)
        return rest_SC.scatter(1, y_S[:, None], p_y_S1)
    if kind == "topk":
        return most_likely(p_SC, topk or -(-classes // 4))
    return p_SC


def smoothed(y_S: Tensor, epsilon: float, classes: int) -> Tensor:
    """(1 - epsilon) e_y + epsilon / C."""
    return (1 - epsilon) * F.one_hot(y_S, classes).float() + epsilon / classes


def by_label(p_SC: Tensor, y_S: Tensor) -> Tensor:
    """Mean probabilities by label, (C, C), as FedDistill shares them. Rows of absent labels are 0."""
    classes = p_SC.shape[1]
    sums_CC = torch.zeros(classes, classes).index_add_(0, y_S, p_SC)
    return sums_CC / torch.bincount(y_S, minlength=classes).clamp(min=1)[:, None]


def similar(head_Cd: Tensor) -> Tensor:
    """0.7 e_y + 0.3 softmax(cos(w_y, w_c) / 0.3) for each label y, (C, C)."""
    rows_Cd = F.normalize(head_Cd, dim=1)
    similarity_CC = (rows_Cd @ rows_Cd.T / SIMILARITY_TEMPERATURE).softmax(1)
    return (1 - SIMILARITY_SHARE) * torch.eye(len(head_Cd)) + SIMILARITY_SHARE * similarity_CC


def most_likely(p_SC: Tensor, k: int) -> Tensor:
    """The k largest probabilities of each row, unchanged; the others share the rest equally."""
    classes = p_SC.shape[1]
    if k >= classes:
        return p_SC
    top_Sk, index_Sk = p_SC.topk(k, dim=1)
    rest_S1 = ((1 - top_Sk.sum(1, keepdim=True)) / (classes - k)).clamp(min=0)
    return rest_S1.expand_as(p_SC).scatter(1, index_Sk, top_Sk)
