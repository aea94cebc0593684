"""Loss terms: pure functions of tensors. Suffixes name axes: B samples, C classes, K clients, d latent width."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.payload import Weights


def cross_entropy(logits_BC: Tensor, y_B: Tensor) -> Tensor:
    """Mean cross entropy over the batch."""
    return F.cross_entropy(logits_BC, y_B)


def proximal(learnable: Mapping[str, Tensor], received: Weights) -> Tensor:
    """Half the squared distance of the learnable entries that were received (Li et al., MLSys 2020, equation 2)."""
    names = [name for name in learnable if name in received]
    way = _flat({name: learnable[name] for name in names}) - _flat({name: received[name] for name in names})
    return 0.5 * (way @ way)


def squared_norm(learnable: Mapping[str, Tensor]) -> Tensor:
    """Half the squared norm of the learnable entries: its gradient is plain weight decay."""
    flat = _flat(learnable)
    return 0.5 * (flat @ flat)


def kl(target_BC: Tensor, logits_BC: Tensor) -> Tensor:
    """Mean over the batch of KL(target || softmax(logits)), in nats; `target_BC` are probabilities."""
    return F.kl_div(F.log_softmax(logits_BC, 1), target_BC, reduction="batchmean")


def ensemble_cross_entropy(logits_KBC: Tensor, y_B: Tensor, trust_KC: Tensor) -> Tensor:
    """Cross entropy of K heads, each trusted by label.

    mean_i sum_k trust[k, y_i] * CE(logits[k, i], y_i): docs/strategies/fedgen.md, equation 3.
    Columns of `trust_KC` sum to 1. Returns a scalar.
    """
    return (trust_KC[:, y_B] * heads_cross_entropy(logits_KBC, y_B)).sum(0).mean()


def ensemble_cross_entropy_per_client(logits_KBC: Tensor, y_B: Tensor, trust_KC: Tensor) -> Tensor:
    """`ensemble_cross_entropy` with trust averaged over the batch's labels first: the slip of FedGen's code."""
    return (trust_KC[:, y_B].mean(1) * heads_cross_entropy(logits_KBC, y_B).mean(1)).sum()


def mean_logits_cross_entropy(logits_KBC: Tensor, y_B: Tensor) -> Tensor:
    """Cross entropy of the mean of the heads' logits: equation 4 of FedGen's paper."""
    return F.cross_entropy(logits_KBC.mean(0), y_B)


def heads_cross_entropy(logits_KBC: Tensor, y_B: Tensor) -> Tensor:
    """Cross entropy of each head on each sample, (K, B)."""
    return F.cross_entropy(logits_KBC.movedim(-1, 1), y_B.expand(len(logits_KBC), -1), reduction="none")


def diversity(noise_Bn: Tensor, z_Bd: Tensor) -> Tensor:
    """exp(-mean over all pairs of D2(noise_i, noise_j) * D1(z_i, z_j)), in (0, 1].

    docs/strategies/fedgen.md, equation 4. D2 is the mean squared, D1 the mean absolute coordinate difference; the B*B
    ordered pairs include the diagonal. Minimising it spreads the latents of different noise apart.
    """
    d2_BB = torch.cdist(noise_Bn, noise_Bn, compute_mode="donot_use_mm_for_euclid_dist").square() / noise_Bn.shape[1]
    d1_BB = (z_Bd[:, None] - z_Bd[None]).abs().mean(-1)
    return torch.exp(-(d2_BB * d1_BB).mean())


def kl_elementwise(student_BC: Tensor, target_BC: Tensor) -> Tensor:
    """KL(target || softmax(student)) averaged over samples *and* classes (docs/strategies/fedgen.md, equation 5)."""
    return F.kl_div(F.log_softmax(student_BC, 1), target_BC, reduction="none").mean()


def linear(learnable: Mapping[str, Tensor], slope: Weights, start: Weights) -> Tensor:
    """Inner product of `slope` with the displacement from `start`: its gradient is `slope` everywhere.

    SCAFFOLD and FedDyn correct gradients with it. Only entries that have a slope count.
    """
    way = _flat({name: learnable[name] for name in slope}) - _flat({name: start[name] for name in slope})
    return way @ _flat(slope)


def _flat(entries: Mapping[str, Tensor]) -> Tensor:
    """All entries, concatenated: summing entry by entry costs a small student a third of its step."""
    return torch.cat([entry.flatten() for entry in entries.values()])


def softened_kl(teacher_BC: Tensor, logits_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch; both are logits, the first a constant.

    T^2 preserves the gradient's size when T changes (Hinton et al., 2015).
    """
    target_BC = (teacher_BC.detach() / temperature).softmax(1)
    return temperature**2 * kl(target_BC, logits_BC / temperature)
