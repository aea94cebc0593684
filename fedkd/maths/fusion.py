"""Fusion: how far receivers trust senders, and means under that trust.

R receivers, K senders, C classes. `trust_RKC[r, k, y]` is receiver r's trust in sender k on label y; it sums to 1 over
k. An axis of size 1 means "the same for all": `(1, K, 1)` is one mean for all receivers and labels. Rules compose by
product and renormalisation.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedkd.engine import Reply
from fedkd.payload import Numbers, Weights

Weighting = Literal["examples", "uniform"]  # of senders: by the size of their data, or equal


def stacked(replies: Sequence[Reply], kind: str) -> Tensor:
    """One kind of knowledge, a tensor in every reply: (K, ...)."""
    return torch.stack([getattr(reply.payload, kind) for reply in replies])


def by_examples(replies: Sequence[Reply]) -> Tensor:
    """Trust by the size of the sender's data, n_k / n: (1, K, 1). FedAvg's rule."""
    return normalise(torch.tensor([float(reply.num_examples) for reply in replies]).view(1, -1, 1))


def uniformly(replies: Sequence[Reply]) -> Tensor:
    """The same trust in every sender: (1, K, 1)."""
    return torch.full((1, len(replies), 1), 1 / len(replies))


def by_weighting(weighting: Weighting, replies: Sequence[Reply]) -> Tensor:
    """The configured one of these two rules: (1, K, 1)."""
    return by_examples(replies) if weighting == "examples" else uniformly(replies)


def mean_size(sizes: Mapping[str, int]) -> float:
    """Mean number of training samples of the clients that have replied, n_k by number; 1 if there are none."""
    return sum(sizes.values()) / len(sizes) if sizes else 1.0


def by_label_counts(counts_KC: Tensor) -> Tensor:
    """Trust by the sender's count of each label, counts[k, y] / sum over senders: (1, K, C). FedGen's rule.

    Counts start at 1 (docs/strategies/fedgen.md, equation 2), so that on a label without draws all are trusted equally.
    """
    return normalise(counts_KC.float()[None])


def normalise(trust_RKC: Tensor) -> Tensor:
    """Scale so that every receiver's trust sums to 1 over senders."""
    return trust_RKC / trust_RKC.sum(1, keepdim=True)


def fuse(values_KC: Tensor, trust_RKC: Tensor) -> Tensor:
    """Means of per-class values (K, C, ...) under a trust: (R, C, ...)."""
    trust_RKC = trust_RKC.expand(-1, -1, values_KC.shape[1])
    return torch.einsum("rky,ky...->ry...", trust_RKC.to(values_KC.dtype), values_KC)


def fuse_weights(replies: Sequence[Reply], trust_1K1: Tensor) -> Weights:
    """Mean of the senders' weights, entry by entry, for all receivers.

    Sums in float64 in the order of the replies, so that the result does not depend on arrival, and equal models average
    to themselves bit for bit.
    """
    weights = [reply.payload.weights or {} for reply in replies]
    trust_K = trust_1K1.double().flatten().tolist()
    shares = [trust / sum(trust_K) for trust in trust_K]
    fused = {}
    for name, entry in weights[0].items():
        total = torch.zeros_like(entry, dtype=torch.float64)
        for share, sent in zip(shares, weights, strict=True):
            total.add_(sent[name].double(), alpha=share)  # not stacked: all models may not fit in memory
        fused[name] = total.to(entry.dtype)
    return fused


def describe(trust_RKC: Tensor) -> Numbers:
    """For the ledger: the effective number of senders, exp of the entropy, averaged over receivers and labels."""
    entropy_RC = torch.special.entr(trust_RKC.double()).sum(1)
    return {"effective_senders": float(entropy_RC.exp().mean())}


# --- knowledge about samples: N of them, trust by label (docs/strategies/fedfuse.md) -----------------------------


def by_holders(counts_KC: Tensor, cap: float = 1.0) -> Tensor:
    """Trust by the sender's share of a label, (1, K, C) float64: T[k, y] = n_ky / sum_j n_jy.

    docs/strategies/fedfuse.md, equation 3. The column of a label without holders is 0: it is undefined, and the rules
    below leave that label out. `cap` bounds one sender's weight on a label that others hold too, because counts are
    claims. As `cap` falls to 0, all holders become equal.
    """
    counts_KC = counts_KC.double()
    trust_KC = counts_KC / counts_KC.sum(0).clamp(min=1)
    return (trust_KC if cap >= 1 else _capped(trust_KC, cap))[None]


def _capped(trust_KC: Tensor, cap: float) -> Tensor:
    """min(cap, scale * T) with the scale that makes columns sum to 1; with m holders `cap` is at least 1/m."""
    cap_C = (1 / (trust_KC > 0).sum(0).clamp(min=1)).clamp(min=cap)
    sorted_KC = trust_KC.sort(0, descending=True).values
    rest_KC = sorted_KC.flip(0).cumsum(0).flip(0)  # the sum of the k-th largest and all smaller ones
    above_K1 = torch.arange(len(trust_KC), dtype=trust_KC.dtype)[:, None]
    scale_KC = (1 - above_K1 * cap_C) / rest_KC.clamp(min=1e-300)  # if the k largest are at the cap
    fits_KC = (scale_KC * sorted_KC <= cap_C * (1 + 1e-12)) & (rest_KC > 0)
    first_C = fits_KC.int().argmax(0)
    scale_C = scale_KC.gather(0, first_C[None])[0]
    largest_C = sorted_KC.gather(0, first_C[None])[0]  # larger ones are at the cap
    return torch.where(trust_KC > largest_C, cap_C, scale_C * trust_KC) * (trust_KC > 0)


def with_affinity(trust_1KC: Tensor, D_RK: Tensor, beta: float) -> Tensor:
    """w[r, k, y] proportional to exp(-beta D[r, k]) T[k, y], over senders (R, K, C).

    docs/strategies/fedfuse.md, equation 4. Computed in logarithms: the only holder of a label is fully trusted even at
    a great distance.
    """
    score_RKC = trust_1KC.double().log() - beta * D_RK.double()[:, :, None]
    return torch.nan_to_num(score_RKC.softmax(1), nan=0.0)  # NaN: the column of a label without holders


def log_prior(counts_C: Tensor, smoothing: float) -> Tensor:
    """log pi + a constant, (C,) float32, pi_y = (n_y + a) / (n + a C), a = `smoothing` > 0.

    docs/strategies/fedfuse.md, equation 1. The constant makes the largest 0: it changes no softmax, and equal counts
    give entries of exactly 0.
    """
    log_C = (counts_C.double() + smoothing).log()
    return (log_C - log_C.max()).float()


def trust_logit(log_KNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """F[r, i] = softmax_y(sum_k w[r, k, y] log S[k, i, y]), (R, N, C): a geometric mean, label by label.

    For all three rules: `log_KNC` are the senders' log-probabilities, and rows of F sum to 1. Labels on which no sender
    is trusted have probability 0, which says nothing about them: see `held`. Senders without any trust are ignored, so
    theirs may be NaN.
    """
    log_KNC, trust_RKC = _trusted(log_KNC, trust_RKC)
    score_RNC = torch.einsum("rky,kny->rny", trust_RKC, log_KNC)
    return score_RNC.masked_fill(~held(trust_RKC)[:, None], -torch.inf).softmax(2)


def trust_prob(log_KNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """F[r, i, y] proportional to sum_k w[r, k, y] S[k, i, y], (R, N, C): an arithmetic mean, label by label."""
    log_KNC, trust_RKC = _trusted(log_KNC, trust_RKC)
    return _as_distribution(torch.einsum("rky,kny->rny", trust_RKC, log_KNC.exp()), trust_RKC)


def confident(log_KNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """F[r, i] = sum_k v S[k, i] / sum_k v, v = sum_y w[r, k, y] S[k, i, y]: by the trust in their prediction."""
    log_KNC, trust_RKC = _trusted(log_KNC, trust_RKC)
    prob_KNC = log_KNC.exp()
    v_RKN = torch.einsum("rky,kny->rkn", trust_RKC, prob_KNC)
    return _as_distribution(torch.einsum("rkn,kny->rny", v_RKN, prob_KNC), trust_RKC)


RULES = {"trust_logit": trust_logit, "trust_prob": trust_prob, "confident": confident}


def held(trust_RKC: Tensor) -> Tensor:
    """Whether any sender is trusted on a label, (R, C)."""
    return (trust_RKC > 0).any(1)


def _trusted(log_KNC: Tensor, trust_RKC: Tensor) -> tuple[Tensor, Tensor]:
    """Only the senders with some trust, because 0 * NaN is NaN; a trust of one label axis is expanded."""
    trust_RKC = trust_RKC.to(log_KNC.dtype).expand(-1, -1, log_KNC.shape[2])
    senders_K = (trust_RKC > 0).any(2).any(0)
    return log_KNC[senders_K], trust_RKC[:, senders_K]


def _as_distribution(mass_RNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """Rows over held labels that sum to 1; a row whose mass has underflowed is uniform."""
    held_R1C = held(trust_RKC)[:, None].to(mass_RNC.dtype)
    mass_RNC = mass_RNC * held_R1C
    total_RN1 = mass_RNC.sum(2, keepdim=True)
    uniform_R1C = held_R1C / held_R1C.sum(2, keepdim=True).clamp(min=1)
    return torch.where(total_RN1 > 0, mass_RNC / total_RN1.clamp(min=torch.finfo(mass_RNC.dtype).tiny), uniform_R1C)
