"""Metrics of a served student, from its logits on the pooled test set. N samples, C classes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd import extensions, seeds
from fedkd.plain_text import printable

BINS = 15  # of the calibration error, as in its paper


def of(names: Sequence[str], logits_NC: Tensor, y_N: Tensor, stream: seeds.Stream) -> dict[str, Any]:
    """The value of each metric by name; a sentence instead of a number says why there is none.

    A user's metric that draws from torch's global generator draws from `stream`.
    """
    return {name: _value(name, logits_NC, y_N, stream) for name in names}


def balanced_accuracy(logits_NC: Tensor, y_N: Tensor) -> float:
    """Mean recall over the classes with a sample."""
    matrix_CC = confusion(logits_NC, y_N).double()
    seen_C = matrix_CC.sum(1)
    return float((matrix_CC.diag() / seen_C)[seen_C > 0].mean())


def macro_f1(logits_NC: Tensor, y_N: Tensor) -> float:
    """Mean F1 over the classes with a sample or a prediction."""
    matrix_CC = confusion(logits_NC, y_N).double()
    both_C = matrix_CC.sum(0) + matrix_CC.sum(1)
    return float((2 * matrix_CC.diag() / both_C)[both_C > 0].mean())


def auroc(logits_NC: Tensor, y_N: Tensor) -> float:
    """Area under the ROC curve of softmax probabilities, each class against all others: mean over classes in `y_N`."""
    from sklearn.metrics import roc_auc_score  # late: it takes a second

    p_NC = logits_NC.double().softmax(1).numpy()
    present = [label for label in y_N.unique().tolist() if bool((y_N != label).any())]
    areas = [roc_auc_score((y_N == label).numpy(), p_NC[:, label]) for label in present]
    return math.fsum(areas) / len(areas) if areas else math.nan


def ece(logits_NC: Tensor, y_N: Tensor) -> float:
    """Expected calibration error, in 15 bins of equal width (Guo et al., ICML 2017, equation 3); less is better."""
    confidence_N, label_N = logits_NC.double().softmax(1).max(1)
    bin_N = (confidence_N * BINS).ceil().long().clamp(1, BINS) - 1
    gap_N = (label_N == y_N).double() - confidence_N
    return float(torch.zeros(BINS, dtype=torch.float64).index_add_(0, bin_N, gap_N).abs().sum() / len(y_N))


def brier(logits_NC: Tensor, y_N: Tensor) -> float:
    """Mean squared distance of the probabilities from the label's one-hot vector, from 0 to 2; less is better."""
    p_NC = logits_NC.double().softmax(1)
    return float((p_NC - torch.nn.functional.one_hot(y_N, p_NC.shape[1])).square().sum(1).mean())


def confusion(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """How many samples of each label (rows) got each label (columns), (C, C) int64."""
    classes = logits_NC.shape[1]
    return torch.bincount(y_N * classes + logits_NC.argmax(1), minlength=classes**2).view(classes, classes)


BUILT_IN: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "auroc": auroc,
    "ece": ece,
    "brier": brier,
    "confusion": lambda logits_NC, y_N: confusion(logits_NC, y_N).tolist(),
}


def _value(name: str, logits_NC: Tensor, y_N: Tensor, stream: seeds.Stream) -> Any:
    extension = None if name in BUILT_IN else extensions.find("metric", name)
    if name not in BUILT_IN and extension is None:
        return f"there is no metric '{name}' in this process"
    function = BUILT_IN[name] if extension is None else extension.value
    try:
        with stream.child(name).as_global():
            value = function(logits_NC.clone(), y_N.clone())
        if name == "confusion":
            return value
        number = float(value)
    except Exception as error:  # noqa: BLE001  # a user's code may raise anything, and a metric never ends a run
        where = f" ({extensions.place(extension, error)})" if extension else ""
        return printable(f"{type(error).__name__}: {error}{where}", 300)
    return number if math.isfinite(number) else f"its value is {number}"
