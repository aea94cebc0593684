"""Predictors: from one or several students to the logits that a run evaluates and an export carries.

B samples, C classes, d latent width, M members.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from fedkd.payload import Weights
from fedkd.student import Student

FAR = -1e9  # the logit of a label without prototype: finite, because a loss must be finite


class Predictor(nn.Module):
    """Students in eval mode and scaled images -> logits (B, C). Its buffers hold all else that it needs."""

    name: ClassVar[str] = "own"  # in files; a safetensors file can only be read if it is one of this module's

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `empty` besides the students, as JSON."""
        return {}

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "Predictor":
        """An uninitialised predictor; load its buffers. Raises TypeError or ValueError for options it does not have."""
        return cls(**options)

    def members(self, student: Student) -> list[Student]:
        """The students that it uses; by default the job's."""
        return [student]


class SingleModel(Predictor):
    """One student's own logits."""

    name = "student"

    def forward(self, members: Iterable[Student], x: Tensor) -> Tensor:
        (student,) = members
        return cast(Tensor, student(x))


class PriorAdjusted(Predictor):
    """One student whose logits exclude its prior, plus the log prior (C,) of its client."""

    name = "prior"
    log_prior: Tensor

    def __init__(self, log_prior_C: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_prior", log_prior_C)

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "PriorAdjusted":
        return cls(torch.empty(members[0].num_classes), **options)

    def forward(self, members: Iterable[Student], x: Tensor) -> Tensor:
        (student,) = members
        return cast(Tensor, student(x) + self.log_prior)


class Prototypes(Predictor):
    """Minus the squared distance of one student's latent to each prototype (C, d); FAR for labels without one."""

    name = "prototypes"
    prototypes: Tensor
    is_known: Tensor

    def __init__(self, prototypes_Cd: Tensor, is_known_C: Tensor) -> None:
        super().__init__()
        self.register_buffer("prototypes", prototypes_Cd)
        self.register_buffer("is_known", is_known_C)

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "Prototypes":
        classes, latent = members[0].num_classes, members[0].latent_width
        return cls(torch.empty(classes, latent), torch.empty(classes, dtype=torch.bool), **options)

    def forward(self, members: Iterable[Student], x: Tensor) -> Tensor:
        (student,) = members
        z_Bd = student.features(x)
        if torch.compiler.is_compiling():  # ONNX has no cdist
            distance_BC = (z_Bd[:, None] - self.prototypes).square().sum(-1)
        else:
            distance_BC = torch.cdist(z_Bd, self.prototypes, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.where(self.is_known, -distance_BC, FAR)


class Ensemble(Predictor):
    """Mean of the members' logits, which has the argmax of their sum, or log of their mean probability.

    Shares (M,) weigh the members. `entries` are the members'; the job's student supplies those that a member lacks.
    """

    name = "ensemble"
    share: Tensor

    def __init__(
        self, share_M: Tensor, combine: Literal["logits", "probabilities"], entries: Sequence[Weights] = ()
    ) -> None:
        super().__init__()
        if combine not in ("logits", "probabilities"):
            raise ValueError(f"combine {combine!r}")
        self.combine, self.entries = combine, entries
        self.register_buffer("share", share_M)

    @property
    def options(self) -> dict[str, Any]:
        return {"combine": self.combine}

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "Ensemble":
        return cls(torch.empty(len(members)), **options)

    def members(self, student: Student) -> list[Student]:
        copies = [deepcopy(student) for _ in self.entries]
        for member, entries in zip(copies, self.entries, strict=True):
            member.load_state_dict(dict(entries), strict=False, assign=True)  # not copied: keeps the memory layout
        return copies

    def forward(self, members: Iterable[Student], x: Tensor) -> Tensor:
        each_MBC = torch.stack([student(x) for student in members])
        if self.combine == "probabilities":
            each_MBC = each_MBC.softmax(-1)
        mean_BC = torch.tensordot(self.share, each_MBC, 1)
        return mean_BC if self.combine == "logits" else mean_BC.clamp(min=1e-30).log()


PREDICTORS: dict[str, type[Predictor]] = {
    known.name: known for known in (SingleModel, PriorAdjusted, Prototypes, Ensemble)
}
