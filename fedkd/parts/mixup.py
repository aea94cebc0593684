"""Partial mixup with distillation: mixes a share of the batch, and learns the teacher's predictions for the mixture.

Source: Choi et al., WACV 2023 (docs/parts.md). It adds to the client's own terms, over the mixed images (n of B) and
with logits scaled to unit deviation instead of a temperature,
weight * n / B * (gamma CE(s', y') + alpha KL(softmax t' || softmax s')). Images mix only within one client.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.errors import ConfigError
from fedkd.maths import losses
from fedkd.parts.part import PREFIX, Part, Seen
from fedkd.problem import Problem
from fedkd.student import Student

_FLATTEST = 1e-6  # deviation below which logits are not scaled up

_ROWS, _PARTNERS, _SHARES = (f"{PREFIX}mixup:{name}" for name in ("rows", "partners", "shares"))


class Mixup(Part):
    name = "mixup"

    @property
    def is_on(self) -> bool:
        config = self.config
        return bool(config.weight and config.fraction and (config.gamma or config.alpha))

    @property
    def teacher(self) -> str | None:
        return str(self.config.teacher) if self.config.alpha else None

    def check(self, problem: Problem) -> None:
        if problem.vocabulary:
            what = "part 'mixup' mixes samples, and token ids have no mean"
            raise ConfigError(what, where="parts", mend="leave the part out: parts=[teacher] distils without mixing")

    def draw(self, size: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        rows = mixed_rows(size, self.config.fraction, rng, self.config.draw)
        if not len(rows):
            return {}
        partners = rng.permutation(size)[: len(rows)]
        shares = rng.beta(self.config.beta, self.config.beta, len(rows)).astype("float32")
        drawn = zip((_ROWS, _PARTNERS, _SHARES), (rows, partners, shares), strict=True)
        return {name: torch.from_numpy(value) for name, value in drawn}

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        config, drawn, batch = self.config, seen.batch.drawn, seen.batch
        if _ROWS not in drawn:
            return
        x, y_nC = mix(batch.x, batch.y, drawn[_ROWS], drawn[_PARTNERS], drawn[_SHARES], seen.logits.shape[1])
        teacher_nC = seen.ask(x) if config.alpha else None
        if not config.gamma and teacher_nC is None:
            return
        share = config.weight * len(x) / len(batch.x)
        with settled(seen.student):
            scaled_nC = scale(seen.student(x))
        if config.gamma:
            yield "mixup_ce", share * config.gamma * F.cross_entropy(scaled_nC, y_nC)
        if teacher_nC is not None:
            yield "mixup_kl", share * config.alpha * losses.kl(scale(teacher_nC).softmax(1), scaled_nC)


def mixed_rows(size: int, fraction: float, rng: np.random.Generator, how: str = "exact") -> np.ndarray:
    """Which rows of a batch are mixed, ascending.

    exact: round(fraction * size) rows, at least one. reference: the rows that floor((1 - fraction) * size) draws with
    replacement leave out, as in the authors' code: about 41 % at fraction 0.1, not 10 %. A batch of one has no partner.
    """
    if size < 2:
        return np.empty(0, dtype=np.int64)
    if how == "reference":
        return np.setdiff1d(np.arange(size), rng.integers(0, size, int((1 - fraction) * size)))
    return np.sort(rng.permutation(size)[: max(1, round(fraction * size))])


def mix(
    x: Tensor, y_B: Tensor, rows_n: Tensor, partners_n: Tensor, shares_n: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """share * x[row] + (1 - share) * x[partner], and the labels (n, C) alike."""
    hot_BC = F.one_hot(y_B, classes).float()
    shares_n1 = shares_n[:, None]
    y_nC = shares_n1 * hot_BC[rows_n] + (1 - shares_n1) * hot_BC[partners_n]
    a = shares_n.view(-1, *[1] * (x.dim() - 1))
    return a * x[rows_n] + (1 - a) * x[partners_n], y_nC


def scale(logits_BC: Tensor) -> Tensor:
    """Each sample's logits divided by their (unbiased) standard deviation, which cancels any positive factor."""
    if logits_BC.shape[1] < 2:
        return logits_BC
    return logits_BC / logits_BC.std(1, keepdim=True).clamp(min=_FLATTEST)


@contextmanager
def settled(student: Student) -> Iterator[None]:
    """The student in eval mode, if it has BatchNorm: a few mixed images must not change the statistics."""
    was_training = student.training
    if student.statistics:
        student.eval()
    try:
        yield
    finally:
        student.train(was_training)
