"""Fusion: how far receivers trust senders, and means under that trust.

R receivers, K senders, C classes. A trust `trust_RKC[r, k, y]` says how far receiver r trusts sender k on label y;
over k it sums to 1. Axes of size 1 mean "the same for all": `(1, K, 1)` is one mean for everybody. Rules compose by
product and renormalisation.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedkd.engine import Reply
from fedkd.payload import Numbers, Weights

Weighting = Literal["examples", "uniform"]  # of senders: by the size of their data, or alike


def by_examples(replies: Sequence[Reply]) -> Tensor:
    """Trust by the size of the sender's data, n_k / n: (1, K, 1). FedAvg's rule."""
    return normalise(torch.tensor([float(reply.num_examples) for reply in replies]).view(1, -1, 1))


def uniformly(replies: Sequence[Reply]) -> Tensor:
    """The same trust in every sender: (1, K, 1)."""
    return torch.full((1, len(replies), 1), 1 / len(replies))


def by_weighting(weighting: Weighting, replies: Sequence[Reply]) -> Tensor:
    """The rule of these two that a configuration names: (1, K, 1)."""
    return by_examples(replies) if weighting == "examples" else uniformly(replies)


def mean_size(sizes: Mapping[str, int]) -> float:
    """Mean number of training samples of the clients heard so far, n_k by number; 1 if there are none."""
    return sum(sizes.values()) / len(sizes) if sizes else 1.0


def by_label_counts(counts_KC: Tensor) -> Tensor:
    """Trust by what the sender saw of each label, counts[k, y] / sum over senders: (1, K, C). FedGen's rule.

    Counts start at 1 (docs/strategies/fedgen.md, equation 2), so that a label nobody drew is trusted to all alike.
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

    Summed in float64 in the order of the replies: the result must not depend on who answered first, and equal models
    average to themselves to the last bit.
    """
    weights = [reply.payload.weights or {} for reply in replies]
    trust_K = trust_1K1.double().flatten().tolist()
    shares = [trust / sum(trust_K) for trust in trust_K]
    fused = {}
    for name, entry in weights[0].items():
        total = torch.zeros_like(entry, dtype=torch.float64)
        for share, sent in zip(shares, weights, strict=True):
            total.add_(sent[name].double(), alpha=share)  # not stacked: the models together may not fit in memory
        fused[name] = total.to(entry.dtype)
    return fused


def describe(trust_RKC: Tensor) -> Numbers:
    """For the ledger: the effective number of senders, exp of the entropy, averaged over receivers and labels."""
    entropy_RC = torch.special.entr(trust_RKC.double()).sum(1)
    return {"effective_senders": float(entropy_RC.exp().mean())}


# --- knowledge about samples: N of them, trust by label (docs/strategies/fedfuse.md) -----------------------------


def by_holders(counts_KC: Tensor, cap: float = 1.0) -> Tensor:
    """Trust by how much of a label the sender holds, (1, K, C) float64: T[k, y] = n_ky / sum_j n_jy.

    docs/strategies/fedfuse.md, equation 3. The column of a label that nobody holds is 0: it is undefined, and the rules
    below leave that label out. `cap` bounds what one sender weighs where others hold the label too: counts are a claim.
    Towards 0: all holders alike.
    """
    counts_KC = counts_KC.double()
    trust_KC = counts_KC / counts_KC.sum(0).clamp(min=1)
    return (trust_KC if cap >= 1 else _capped(trust_KC, cap))[None]


def _capped(trust_KC: Tensor, cap: float) -> Tensor:
    """min(cap, scale * T) with the scale that makes columns sum to 1; with m holders `cap` is at least 1/m."""
    cap_C = (1 / (trust_KC > 0).sum(0).clamp(min=1)).clamp(min=cap)
    sorted_KC = trust_KC.sort(0, descending=True).values
    rest_KC = sorted_KC.flip(0).cumsum(0).flip(0)  # what the k-th largest and all smaller ones weigh together
    above_K1 = torch.arange(len(trust_KC), dtype=trust_KC.dtype)[:, None]
    scale_KC = (1 - above_K1 * cap_C) / rest_KC.clamp(min=1e-300)  # if the k largest are at the cap
    fits_KC = (scale_KC * sorted_KC <= cap_C * (1 + 1e-12)) & (rest_KC > 0)
    first_C = fits_KC.int().argmax(0)
    scale_C = scale_KC.gather(0, first_C[None])[0]
    largest_C = sorted_KC.gather(0, first_C[None])[0]  # larger ones are at the cap
    return torch.where(trust_KC > largest_C, cap_C, scale_C * trust_KC) * (trust_KC > 0)


def with_affinity(trust_1KC: Tensor, D_RK: Tensor, beta: float) -> Tensor:
    """w[r, k, y] proportional to exp(-beta D[r, k]) T[k, y], over senders (R, K, C).

    docs/strategies/fedfuse.md, equation 4. In logarithms: where only a sender at a great distance holds a label, it is
    still trusted fully.
    """
    score_RKC = trust_1KC.double().log() - beta * D_RK.double()[:, :, None]
    return torch.nan_to_num(score_RKC.softmax(1), nan=0.0)  # NaN: the column of a label that nobody holds


def log_prior(counts_C: Tensor, smoothing: float) -> Tensor:
    """log pi + a constant, (C,) float32, pi_y = (n_y + a) / (n + a C), a = `smoothing` > 0.

    docs/strategies/fedfuse.md, equation 1. The constant makes the largest 0: it changes no softmax, and where counts
    are equal all entries are exactly 0.
    """
    log_C = (counts_C.double() + smoothing).log()
    return (log_C - log_C.max()).float()


def trust_logit(log_KNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """F[r, i] = softmax_y(sum_k w[r, k, y] log S[k, i, y]), (R, N, C): a geometric mean, label by label.

    As in all three rules: `log_KNC` are the senders' log-probabilities, rows of F sum to 1, and labels that nobody is
    trusted on have probability 0, which says nothing about them: look at `held`. Senders trusted on nothing are not
    looked at, so that theirs may be NaN.
    """
    log_KNC, trust_RKC = _heard(log_KNC, trust_RKC)
    score_RNC = torch.einsum("rky,kny->rny", trust_RKC, log_KNC)
    return score_RNC.masked_fill(~held(trust_RKC)[:, None], -torch.inf).softmax(2)


def trust_prob(log_KNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """F[r, i, y] proportional to sum_k w[r, k, y] S[k, i, y], (R, N, C): an arithmetic mean, label by label."""
    log_KNC, trust_RKC = _heard(log_KNC, trust_RKC)
    return _as_law(torch.einsum("rky,kny->rny", trust_RKC, log_KNC.exp()), trust_RKC)


def confident(log_KNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """F[r, i] = sum_k v S[k, i] / sum_k v, v = sum_y w[r, k, y] S[k, i, y]: senders by the trust in what they say."""
    log_KNC, trust_RKC = _heard(log_KNC, trust_RKC)
    prob_KNC = log_KNC.exp()
    v_RKN = torch.einsum("rky,kny->rkn", trust_RKC, prob_KNC)
    return _as_law(torch.einsum("rkn,kny->rny", v_RKN, prob_KNC), trust_RKC)


RULES = {"trust_logit": trust_logit, "trust_prob": trust_prob, "confident": confident}


def held(trust_RKC: Tensor) -> Tensor:
    """Whether anybody is trusted on a label, (R, C)."""
    return (trust_RKC > 0).any(1)


def _heard(log_KNC: Tensor, trust_RKC: Tensor) -> tuple[Tensor, Tensor]:
    """Only the senders that somebody trusts on something, for 0 * NaN is NaN; one trust for all labels is expanded."""
    trust_RKC = trust_RKC.to(log_KNC.dtype).expand(-1, -1, log_KNC.shape[2])
    senders_K = (trust_RKC > 0).any(2).any(0)
    return log_KNC[senders_K], trust_RKC[:, senders_K]


def _as_law(mass_RNC: Tensor, trust_RKC: Tensor) -> Tensor:
    """Rows over held labels that sum to 1; a row whose mass has underflowed is uniform."""
    held_R1C = held(trust_RKC)[:, None].to(mass_RNC.dtype)
    mass_RNC = mass_RNC * held_R1C
    total_RN1 = mass_RNC.sum(2, keepdim=True)
    uniform_R1C = held_R1C / held_R1C.sum(2, keepdim=True).clamp(min=1)
    return torch.where(total_RN1 > 0, mass_RNC / total_RN1.clamp(min=torch.finfo(mass_RNC.dtype).tiny), uniform_R1C)
