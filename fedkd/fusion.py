"""Fusion: how far receivers trust senders, and means under that trust.

R receivers, K senders, C classes. A trust `trust_RKC[r, k, y]` says how far receiver r trusts sender k on label y;
over k it sums to 1. Axes of size 1 mean "the same for all": `(1, K, 1)` is one mean for everybody. Rules compose by
product and renormalisation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.engine import Reply
from fedkd.payload import Numbers, Weights


def by_examples(replies: Sequence[Reply]) -> Tensor:
    """Trust by the size of the sender's data, n_k / n: (1, K, 1). FedAvg's rule."""
    return normalise(torch.tensor([float(reply.num_examples) for reply in replies]).view(1, -1, 1))


def uniformly(replies: Sequence[Reply]) -> Tensor:
    """The same trust in every sender: (1, K, 1)."""
    return torch.full((1, len(replies), 1), 1 / len(replies))


def by_label_counts(counts_KC: Tensor) -> Tensor:
    """Trust by what the sender saw of each label, counts[k, y] / sum over senders: (1, K, C). FedGen's rule.

    Counts start at 1 (fedgen.md 1.4), so that a label nobody drew is trusted to all alike.
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
    weights = [reply.payload.weights for reply in replies]
    trust_K = trust_1K1.double().flatten().tolist()
    first = weights[0]
    assert first is not None
    fused = {}
    for name, entry in first.items():
        stacked = torch.stack([w[name] for w in weights if w is not None]).double()
        total = torch.tensordot(torch.tensor(trust_K, dtype=torch.float64) / sum(trust_K), stacked, 1)
        fused[name] = total.to(entry.dtype)
    return fused


def describe(trust_RKC: Tensor) -> Numbers:
    """For the ledger: the effective number of senders, exp of the entropy, averaged over receivers and labels."""
    entropy_RC = torch.special.entr(trust_RKC.double()).sum(1)
    return {"effective_senders": float(entropy_RC.exp().mean())}
