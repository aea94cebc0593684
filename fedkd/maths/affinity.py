"""Affinity: how similar clients' knowledge is, and the trust that follows.

K clients, N probe samples, C classes; row = receiver, column = sender. All in float64: in float32 the divergence of a
distribution from itself is up to 2e-7. `...` are further leading axes: a matrix per class or per sample.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fedkd.payload import Findings

Divergence = Literal["kl", "kl_rev", "js", "l1", "l2", "cos"]

TIE = 1e-12  # distances that differ by less are ties
LEAST, MOST = 1.2, 0.95  # effective senders, and their share of all, outside which affinity has no effect
MAX_BETA = 1e6  # the end of the search for beta
LOWEST = 1e-38  # smallest fused probability whose logarithm is sent


def epd(probs_KNC: Tensor) -> Tensor:
    """Estimated label distributions (K, C): each client's mean prediction (docs/strategies/knfu.md, equation 1)."""
    probs_KNC = probs_KNC.double()
    return (probs_KNC / probs_KNC.sum(-1, keepdim=True)).mean(-2)


def label_shares(labels_KN: Tensor, classes: int) -> Tensor:
    """Share (K, C) of the samples to which a client gives each label: `epd=argmax_hist`."""
    clients, samples = labels_KN.shape
    hits_KC = torch.zeros(clients, classes, dtype=torch.float64)
    return hits_KC.scatter_add_(1, labels_KN, torch.ones_like(labels_KN, dtype=torch.float64)) / samples


def reported(counts_KC: Tensor, pseudo: float = 0.0) -> Tensor:
    """Label distributions (K, C) of counts, each plus `pseudo`; without samples uniform: `epd=reported`."""
    counts_KC = counts_KC.double() + pseudo
    total_K1 = counts_KC.sum(-1, keepdim=True)
    return torch.where(total_K1 > 0, counts_KC / total_K1.clamp(min=1e-300), 1 / counts_KC.shape[-1])


def distance(P_KC: Tensor, kind: Divergence = "kl", eps: float = 1e-6) -> Tensor:
    """D (..., K, K) >= 0 between distributions (..., K, C), for divergences in nats; the diagonal is 0.

    `kl`: D[k, j] = KL(P_k || P_j), large if j lacks a class that k has. Distributions are smoothed by
    (P + eps) / (1 + C eps) (docs/strategies/knfu.md, equations 2 and 3). Raises ValueError for an unknown kind.
    """
    P_KC = (P_KC.double() + eps) / (1 + P_KC.shape[-1] * eps)
    if kind in {"kl", "kl_rev"}:
        log_KC = P_KC.log()
        D_KK = (P_KC * log_KC).sum(-1, keepdim=True) - P_KC @ log_KC.mT  # no (K, K, C) in memory
        D_KK = D_KK if kind == "kl" else D_KK.mT
    elif kind == "js":
        entropy_K = torch.special.entr(P_KC).sum(-1)
        middle_KKC = (P_KC.unsqueeze(-2) + P_KC.unsqueeze(-3)) / 2
        middle_KK = torch.special.entr(middle_KKC).sum(-1)
        D_KK = middle_KK - (entropy_K.unsqueeze(-1) + entropy_K.unsqueeze(-2)) / 2
    elif kind in {"l1", "l2"}:
        D_KK = torch.cdist(P_KC, P_KC, p=float(kind[1]), compute_mode="donot_use_mm_for_euclid_dist")
    elif kind == "cos":
        unit_KC = P_KC / P_KC.norm(dim=-1, keepdim=True)
        D_KK = 1 - unit_KC @ unit_KC.mT
    else:
        raise ValueError(f"unknown divergence '{kind}'")
    return D_KK.clamp(min=0) * (1 - torch.eye(P_KC.shape[-2], dtype=torch.float64))


def table_distance(P_KCC: Tensor, defined_KC: Tensor, kind: Divergence = "kl", eps: float = 1e-6) -> Tensor:
    """D (K, K) between conditional tables, the mean over labels that both clients have: `epd=class_table`.

    P[k, y] is client k's prediction for label y; rows outside `defined_KC` are ignored. The distance of clients without
    a common label is infinite.
    """
    both_CKK = (defined_KC[:, None] & defined_KC[None]).movedim(-1, 0)
    uniform = torch.full((), 1 / P_KCC.shape[-1], dtype=torch.float64)
    P_KCC = torch.where(defined_KC[..., None], P_KCC.double(), uniform)
    D_CKK = distance(P_KCC.movedim(1, 0), kind, eps) * both_CKK
    D_KK = torch.where(both_CKK.any(0), D_CKK.sum(0) / both_CKK.sum(0).clamp(min=1), math.inf)
    return D_KK.fill_diagonal_(0.0)


def weights(
    D_KK: Tensor,
    beta: float,
    *,
    include_self: bool = True,
    prior_K: Tensor | None = None,
    top: int | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """W (..., K, K) = softmax over senders of -beta * D; rows sum to 1 (docs/strategies/knfu.md, equation 4).

    `prior_K` multiplies before normalisation; `top` keeps the nearest senders (ties: the lower client); `allowed`,
    broadcast against D, says which clients may send to which: (C, 1, K) gives weights by label. beta = inf shares
    equally among the nearest. A row without a sender is 0.
    """
    permitted = D_KK.isfinite()
    if prior_K is not None:
        permitted = permitted & (prior_K > 0)
    if not include_self:
        permitted = permitted & ~torch.eye(D_KK.shape[-1], dtype=torch.bool)
    if allowed is not None:
        permitted = permitted & allowed
    far_KK = torch.where(permitted, D_KK.double(), math.inf)
    if top is not None:
        order_KK = far_KK.argsort(dim=-1, stable=True)
        permitted = permitted & torch.zeros_like(permitted).scatter_(-1, order_KK[..., :top], True)
        far_KK = torch.where(permitted, far_KK, math.inf)
    beyond_KK = far_KK.sub_(far_KK.amin(-1, keepdim=True))  # NaN in rows without a sender
    if math.isinf(beta):
        scores_KK = torch.zeros_like(beyond_KK).masked_fill_(beyond_KK > TIE, -math.inf)
    else:
        scores_KK = beyond_KK.mul_(-beta)
    if prior_K is not None:
        scores_KK = scores_KK + prior_K.double().log()
    forbidden = ~permitted
    return torch.softmax(scores_KK.masked_fill_(forbidden, -math.inf), -1).masked_fill_(forbidden, 0.0)


def effective_senders(W_KK: Tensor) -> Tensor:
    """exp of the entropy of each row, (..., K): between 1 and K; 0 for a row without a sender."""
    return torch.special.entr(W_KK).sum(-1).exp() * (W_KK.sum(-1) > 0)


def describe(W_RK: Tensor, own_R: Tensor) -> Findings:
    """For the ledger: weights (R, K) to 4 digits and effective senders; `own_R` is the column of each receiver itself.

    is_local = 1: every teacher is the client's own knowledge, so fusion is local training. is_untested = 1: with so few
    or so many effective senders, the run says nothing about affinity. Weights by sample or by label (..., R, K) are
    averaged. Receivers without a sender count only for `without_sender`.
    """
    rows, columns = W_RK.shape[-2:]
    own_WR = W_RK[..., torch.arange(rows), own_R]
    senders = effective_senders(W_RK).flatten()
    has_some = senders[senders > 0] if bool(senders.any()) else senders
    possible = columns - float(not bool(own_WR.any()))
    mean = float(has_some.mean())
    return {
        "effective_senders": mean,
        "effective_senders_least": float(has_some.min()),
        "effective_senders_most": float(has_some.max()),
        "without_sender": float((senders == 0).double().mean()),
        "is_local": float(columns > 1 and bool((own_WR >= 1 - TIE).all())),
        "is_untested": float(not LEAST <= mean <= MOST * possible),
        "weights": [[round(w, 4) for w in row] for row in W_RK.reshape(-1, rows, columns).mean(0).tolist()],
    }


def mix(W_RK: Tensor, values_KNC: Tensor) -> Tensor:
    """Sums (R, N, C) of senders' values under weights (R, K), or (N, R, K) that differ by sample; in float64."""
    if W_RK.dim() == 2:
        return torch.tensordot(W_RK.double(), values_KNC.double(), 1)
    return torch.einsum("nrk,knc->rnc", W_RK.double(), values_KNC.double())


def as_logits(probs: Tensor) -> Tensor:
    """Fused probabilities for sending: float32 logarithms, all finite."""
    return probs.clamp(min=LOWEST).log().float()


def teachers(clients: Sequence[int], W_RK: Tensor, fused_RNC: Tensor) -> dict[int, Tensor]:
    """log F_k (N, C) by client with a teacher, for W (R, K) or (N, R, K); equal weights share one tensor."""
    of_row: dict[bytes, Tensor] = {}
    by_client = {}
    for row, client in enumerate(clients):
        row_weights = W_RK[..., row, :]
        if bool(row_weights.any()):
            by_client[client] = of_row.setdefault(row_weights.numpy().tobytes(), as_logits(fused_RNC[row]))
    return by_client


def beta_for(D_KK: Tensor, target: float, **rule: Any) -> float:
    """The beta that gives clients `target` effective senders on average: `beta=auto`.

    Bisection finds it, because the mean falls as beta grows. The result is 0 if there are at most `target` senders
    anyway, and at most 1e6. `rule` goes to `weights`.
    """

    def senders(beta: float) -> float:
        return float(effective_senders(weights(D_KK, beta, **rule)).mean())

    if senders(0.0) <= target + TIE:
        return 0.0
    low, high = 0.0, 1.0
    while high < MAX_BETA and senders(high) > target:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if senders(middle) > target else (low, middle)
    return high
