"""Quality of knowledge: fused against own predictions, and generated samples against their labels.

The results go to the ledger, never into training, and are finite for any input. K owners, R receivers (R = K, or 1 if
all receive the same), N probe samples, C classes, B generated samples of width D.
"""

import torch
from torch import Tensor

from fedkd.payload import Findings

_BINS = 15  # of confidence, equally wide (Guo et al., ICML 2017)
_DIGITS = 4  # of the numbers in lists


def of_fused(own_KNC: Tensor, fused_RNC: Tensor, y_N: Tensor | None = None) -> Findings:
    """How received knowledge differs from a client's own; both are probabilities on the same samples.

    teacher_agreement: how often both have the same most likely label. teacher_entropy: mean, in nats. With labels also
    teacher_accuracy and own_accuracy, filter_gain (their difference, mean over clients), harmed (share of clients that
    receive less accurate knowledge than their own), calibration (expected calibration error of the fused) and
    coverage (accuracy of the fused by true label; 0 for a label without samples). A label below 0 means no label.
    Without clients or samples the result is empty. Raises ValueError if R is neither 1 nor K.
    """
    if len(fused_RNC) not in {1, len(own_KNC)} or own_KNC.shape[1:] != fused_RNC.shape[1:]:
        raise ValueError(f"fused is {tuple(fused_RNC.shape)}, own {tuple(own_KNC.shape)}: not the same clients")
    if not own_KNC.numel():
        return {}
    fused_RNC = _clean(fused_RNC)
    fused_RN, own_KN = fused_RNC.argmax(2), _clean(own_KNC).argmax(2)
    findings: dict[str, object] = {
        "teacher_agreement": _mean(fused_RN == own_KN),
        "teacher_entropy": _mean(torch.special.entr(fused_RNC).sum(2)),
    }
    return findings if y_N is None else findings | _with_labels(own_KN, fused_RN, fused_RNC, y_N)


def calibration(probs_MC: Tensor, y_M: Tensor) -> float:
    """Expected calibration error: |accuracy - confidence| in 15 equal bins of confidence, weighted by their samples."""
    confidence_M, label_M = _clean(probs_MC).double().max(1)
    bin_M = (confidence_M * _BINS).ceil().long().clamp(1, _BINS) - 1  # a bin holds its upper edge
    gap_M = (label_M == y_M).double() - confidence_M
    return float(torch.bincount(bin_M, gap_M, _BINS).abs().sum() / max(1, len(y_M)))


def of_generated(z_BD: Tensor, y_B: Tensor, probs_BC: Tensor) -> Findings:
    """Whether generated samples match their labels, and whether they differ from each other.

    fidelity: how often the teacher gives a sample its label. variety: mean squared distance to the label's mean,
    divided by that to the mean of all; 0 = one sample per label (mode collapse), 1 = labels make no difference.
    """
    if not len(y_B):
        return {}
    z_BD = torch.nan_to_num(z_BD.flatten(1).double(), 0.0, 0.0, 0.0)
    classes = int(y_B.max()) + 1
    counts_C1 = torch.bincount(y_B, minlength=classes).clamp(min=1)[:, None]
    mean_CD = torch.zeros(classes, z_BD.shape[1], dtype=torch.float64).index_add_(0, y_B, z_BD) / counts_C1
    within, total = (float((z_BD - centre).square().sum()) for centre in (mean_CD[y_B], z_BD.mean(0)))
    variety = min(1.0, within / total) if 0 < total < float("inf") else 0.0
    return {"fidelity": _mean(_clean(probs_BC).argmax(1) == y_B), "variety": variety}


def _with_labels(own_KN: Tensor, fused_RN: Tensor, fused_RNC: Tensor, y_N: Tensor) -> dict[str, object]:
    kept_N = y_N >= 0
    if not bool(kept_N.any()):
        return {}
    y_N, own_KN, fused_RN, fused_RNC = y_N[kept_N], own_KN[:, kept_N], fused_RN[:, kept_N], fused_RNC[:, kept_N]
    right_RN, own_right_KN = fused_RN == y_N, own_KN == y_N
    # Counts, not means: clients with equally many correct samples must agree to the last bit.
    gain_K = right_RN.sum(1).expand(len(own_KN)) - own_right_KN.sum(1)
    classes, receivers = fused_RNC.shape[2], len(fused_RNC)
    right_C = torch.bincount(y_N, right_RN.sum(0).double(), classes)
    coverage_C = right_C / (torch.bincount(y_N, minlength=classes) * receivers).clamp(min=1)
    return {
        "teacher_accuracy": _mean(right_RN),
        "own_accuracy": _mean(own_right_KN),
        "filter_gain": _mean(gain_K) / len(y_N),
        "harmed": _mean(gain_K < 0),
        "calibration": calibration(fused_RNC.flatten(0, 1), y_N.repeat(receivers)),
        "coverage": [round(value, _DIGITS) for value in coverage_C.tolist()],
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _clean(probs: Tensor) -> Tensor:
    """The probabilities, made finite and clamped to 0..1."""
    return torch.nan_to_num(probs, 0.0, 1.0, 0.0).clamp(0, 1)
