"""How students become the logits that a run judges: alone, with a prior, as an ensemble, by prototypes.

The same as the `logits` of the client halves that have their own, as modules: so they can leave a run.
B samples, C classes, d latent width, M members.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from fedkd.student import Student

FAR = -1e9  # the logit of a label without prototype


class Rule(nn.Module):
    """Students and scaled images -> logits (B, C)."""

    name: ClassVar[str]

    @property
    def options(self) -> dict[str, Any]:
        """What makes an empty one again, beside the students: JSON."""
        return {}

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "Rule":
        """One whose entries are still to be filled in. Raises TypeError or ValueError for options it does not have."""
        raise NotImplementedError


class One(Rule):
    """One student's own logits."""

    name = "student"

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "One":
        return cls(**options)

    def forward(self, members: Iterable[Student], x: Tensor) -> Tensor:
        (student,) = members
        return cast(Tensor, student(x))


class WithPrior(Rule):
    """One student that speaks without its prior, with the log prior (C,) of the client it is for (FedFuse)."""

    name = "prior"
    log_prior: Tensor

    def __init__(self, log_prior_C: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_prior", log_prior_C)

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "WithPrior":
        return cls(torch.empty(members[0].num_classes), **options)

    def forward(self, members: Iterable[Student], x: Tensor) -> Tensor:
        (student,) = members
        return cast(Tensor, student(x) + self.log_prior)


class Prototypes(Rule):
    """Minus the squared distance of one student's latent to each prototype (C, d); FAR where there is none."""

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
        # Written out: ONNX has no cdist.
        distance_BC = (student.features(x)[:, None] - self.prototypes).square().sum(-1)
        return torch.where(self.is_known, -distance_BC, FAR)


class Ensemble(Rule):
    """Mean of the members' logits, or log of the mean of their probabilities, each by its share (M,) (FedEnsemble)."""

    name = "ensemble"
    share: Tensor

    def __init__(self, share_M: Tensor, combine: Literal["logits", "probabilities"]) -> None:
        super().__init__()
        if combine not in ("logits", "probabilities"):
            raise ValueError(f"combine {combine!r}")
        self.combine = combine
        self.register_buffer("share", share_M)

    @property
    def options(self) -> dict[str, Any]:
        return {"combine": self.combine}

    @classmethod
    def empty(cls, members: Sequence[Student], **options: Any) -> "Ensemble":
        return cls(torch.empty(len(members)), **options)

    def forward(self, members: Iterable[Student], x: Tensor) -> Tensor:
        each_MBC = torch.stack([student(x) for student in members])
        if self.combine == "probabilities":
            each_MBC = each_MBC.softmax(-1)
        mean_BC = torch.tensordot(self.share, each_MBC, 1)
        return mean_BC if self.combine == "logits" else mean_BC.clamp(min=1e-30).log()


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (One, WithPrior, Prototypes, Ensemble)}
