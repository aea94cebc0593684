"""Measures of a round and of a run. K clients, N samples."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedkd.payload import Weights


def over_clients(correct: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """Accuracy of clients on their own test splits: mean, std (population), worst tenth, and pooled.

    Worst tenth is the mean of the ceil(K/10) lowest; `pooled` is all correct samples divided by all samples, which is
    FedGen's round accuracy.
    """
    accuracies = sorted(c / n for c, n in zip(correct, counts, strict=True))
    mean = math.fsum(accuracies) / len(accuracies)
    worst = accuracies[: math.ceil(len(accuracies) / 10)]
    return {
        "mean": mean,
        "std": math.sqrt(math.fsum((a - mean) ** 2 for a in accuracies) / len(accuracies)),
        "worst_decile": math.fsum(worst) / len(worst),
        "pooled": math.fsum(correct) / sum(counts),
    }


def weight_drift(sent: Sequence[Weights], returned: Sequence[Weights]) -> dict[str, float]:
    """How far the clients' updates are apart: mean distance to their mean, and mean cosine with it.

    Covers the learnable entries that go down and come up, without BatchNorm statistics. Cosine 1: all updates have one
    direction; the cosine of a zero update or mean is 0. Updates are computed twice and one by one: all at once take
    gigabytes for large students.
    """
    names = [name for name in sent[0] if ".running_" not in name]

    def updates() -> Iterator[Tensor]:
        for before, after in zip(sent, returned, strict=True):
            yield torch.cat([(after[name] - before[name]).flatten() for name in names]).double()

    remaining = updates()
    mean_P = next(remaining)
    for update_P in remaining:
        mean_P += update_P
    mean_P /= len(sent)
    length, distances, cosines = float(mean_P.norm()), [], []
    for update_P in updates():
        product = float(update_P.norm()) * length
        cosines.append(min(1.0, max(-1.0, float(update_P @ mean_P) / max(product, 1e-16))))
        distances.append(float(update_P.sub_(mean_P).norm()))
    return {"weights": math.fsum(distances) / len(sent), "cosine": math.fsum(cosines) / len(sent)}


def distance(one: Weights, other: Weights) -> float:
    """L2 distance of two students' weights over the learnable entries of `other`; BatchNorm statistics are left out."""
    squares = [(one[n].double() - other[n].double()).square().sum() for n in other if ".running_" not in n]
    return math.sqrt(math.fsum(map(float, squares)))


def function_drift(labels_KN: Tensor, classes: int) -> float:
    """How often two clients' students disagree on a probe sample: mean over ordered pairs of different clients."""
    clients, samples = labels_KN.shape
    if clients < 2:
        return 0.0
    votes_NC = torch.zeros(samples, classes, dtype=torch.float64)
    votes_NC.scatter_add_(1, labels_KN.T.long(), torch.ones(samples, clients, dtype=torch.float64))
    agreeing = (votes_NC * (votes_NC - 1)).sum(1) / (clients * (clients - 1))
    return float(1 - agreeing.mean())


def local_accuracy(labels_KN: Tensor, y_N: Tensor, q_KC: Tensor) -> dict[str, float]:
    """In-local and out-local accuracy of K trained students: labels weighted by their client's share, and against it.

    A_k(y) is student k's accuracy on the probe images of label y, q_k its client's label distribution: `in` is
    sum_y q_k(y) A_k(y), `out` the same under (1 - q_k(y)) / (C - 1), both averaged over clients (Lee et al.,
    NeurIPS 2022). Labels without a probe image are left out of both.
    """
    classes = q_KC.shape[1]
    of_label_NC = (y_N[:, None] == torch.arange(classes)).double()
    counts_C = of_label_NC.sum(0)
    accuracy_KC = (labels_KN == y_N).double() @ of_label_NC / counts_C.clamp(min=1)
    accuracy = {}
    for name, share_KC in (("in", q_KC.double()), ("out", (1 - q_KC.double()) / max(1, classes - 1))):
        share_KC = share_KC * (counts_C > 0)
        total_K = share_KC.sum(1)
        held = total_K > 0
        if bool(held.any()):
            accuracy[name] = float(((accuracy_KC * share_KC).sum(1)[held] / total_K[held]).mean())
    return accuracy


def by_class(counts: Sequence[Tensor]) -> list[float | None]:
    """Accuracy of each class over all of some evaluations, each (2, C): images, and right ones. None: no image."""
    seen, right = torch.stack(list(counts)).sum(0).tolist()
    return [correct / count if count else None for correct, count in zip(right, seen, strict=True)]


def summarise(by_round: Mapping[int, float]) -> dict[str, float]:
    """The last value, the mean of those of the last 10 rounds, the mean of the 5 highest, the highest.

    Rounds without a value were not evaluated. `top5` selects rounds by the value that it reports: FedGen's rule, only
    for comparison with its figures.
    """
    values, end = list(by_round.values()), max(by_round)
    last10 = [value for number, value in by_round.items() if number > end - 10]
    top5 = sorted(values)[-5:]
    return {
        "last": by_round[end],
        "last10": math.fsum(last10) / len(last10),
        "top5": math.fsum(top5) / len(top5),
        "best": max(values),
    }


def mean_statistics(kept: Sequence[Weights], names: Sequence[str]) -> Weights:
    """Mean over clients of their kept statistics, if they have any, for a student that all share."""
    holders = [weights for weights in kept if all(name in weights for name in names)]
    if not holders:
        return {}
    return {name: torch.stack([w[name] for w in holders]).double().mean(0).to(holders[0][name].dtype) for name in names}


def mean_by_name(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each named number over the mappings that have it, in order of first appearance."""
    names = dict.fromkeys(name for row in numbers for name in row)
    return {n: math.fsum(v := [row[n] for row in numbers if n in row]) / len(v) for n in names}
