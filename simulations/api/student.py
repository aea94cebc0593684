"""A run's student as a plain torch module, and how well it does."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.data.samples import Samples
from fedkd.data.user_data import Data
from fedkd.errors import DataError
from simulations.export.serving import Served

_BATCH = 512


class TrainedStudent(nn.Module):
    """Preprocessed samples (B, ...) -> logits (B, classes). In eval mode; its parameters ask for no gradient.

    `labels`: the names of the classes.
    """

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.members = nn.ModuleList(served.members)
        self.rule = served.predictor
        self.labels = served.assembly.dataset.labels
        self._stored, self._vocabulary = served.assembly.site.test, served.assembly.dataset.vocabulary
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.rule(self.members, x))

    def preprocess(self, x: Any) -> Tensor:
        """Samples as stored (B, ...), a tensor, an array or a list -> what the student takes: scaled as in training.

        Raises DataError for another shape or type.
        """
        stored = self._stored
        given = torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x)
        if given.shape[1:] != stored.x.shape[1:] or given.is_floating_point() != stored.x.is_floating_point():
            what = f"samples are {tuple(given.shape)} {given.dtype}"
            mend = f"the student takes (B, {', '.join(map(str, stored.x.shape[1:]))}) {stored.x.dtype}"
            raise DataError(what, where="preprocess", mend=mend)
        largest = 255 if stored.x.dtype == torch.uint8 else self._vocabulary - 1
        if len(given) and not given.is_floating_point() and not 0 <= int(given.min()) <= int(given.max()) <= largest:
            what = f"samples hold {int(given.min())} to {int(given.max())}"
            raise DataError(what, where="preprocess", mend=f"the student knows 0 to {largest}")
        labels = torch.zeros(len(given), dtype=torch.int64)
        samples = Samples(given.to(stored.x.dtype), labels, stored.scale, stored.offset)
        return samples.take(torch.arange(len(given)))[0]


def evaluate(served: Served, x: Any, y: Any) -> dict[str, float]:
    """Accuracy, mean loss and number of samples; of the held-out ones without x and y. Raises DataError."""
    if (x is None) != (y is None):
        raise DataError("samples and labels come together", where="evaluate", mend="give both, or none")
    logits, labels = held_out(served) if x is None else of_given(served, x, y)
    loss = float(functional.cross_entropy(logits, labels))
    return {"accuracy": float((logits.argmax(1) == labels).double().mean()), "loss": loss, "samples": len(labels)}


def confusion(served: Served) -> np.ndarray:
    """Counts (true, predicted) of the held-out samples."""
    logits, labels = held_out(served)
    classes = len(served.assembly.dataset.labels)
    counts = torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    return counts.view(classes, classes).numpy()


def held_out(served: Served) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of the run's own evaluation, and labels (N,)."""
    return served.logits, served.assembly.site.test.y[served.held_out]


def of_given(served: Served, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of the caller's samples. Raises DataError."""
    student = TrainedStudent(served)
    given = Data(train=(x, y), labels=student.labels)
    with torch.inference_mode():
        parts = [student(student.preprocess(part)) for part in torch.from_numpy(given.train_x).split(_BATCH)]
    return torch.cat(parts), torch.from_numpy(given.train_y)
