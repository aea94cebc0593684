"""Guards against drift: a moving average of the client's students as a teacher, and a pull to the received weights.

Source: Brahma, Rai, CVPR 2023 (PETAL), with labels and with variance v = 1 (docs/parts.md).
"""

from collections.abc import Iterator

from torch import Tensor

from fedkd.maths import losses
from fedkd.parts.part import Part, Seen, logits_of


class Ema(Part):
    """weight * CE(softmax of the average's logits, student); the target is soft, so the term is not 0 on agreement."""

    name = "ema"

    @property
    def teacher(self) -> str | None:
        return "ema"

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        teacher_BC = seen.per_sample.get(logits_of("ema"))
        if teacher_BC is not None:
            yield self.name, -self.config.weight * (teacher_BC.softmax(1) * seen.logits.log_softmax(1)).sum(1).mean()


class Anchor(Part):
    """weight / 2 * squared distance to the received learnable entries: FedProx's term."""

    name = "anchor"

    @property
    def needs_weights(self) -> bool:
        return True

    def terms(self, seen: Seen) -> Iterator[tuple[str, Tensor]]:
        received = seen.job.payload.weights or {}
        learnable = seen.student.learnable
        if any(name in received for name in learnable):
            yield self.name, self.config.weight * losses.proximal(learnable, received)
