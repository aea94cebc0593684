"""The guard refuses what is well-formed but cannot be honest: it compares replies with each other and counts with data.

Each float tensor of a reply has a size: its largest absolute value; of weights that came down, of their change. It is
compared with the median of the other replies' sizes of the same tensor. A reply over `border.limit` times as large is
refused; for variances, which grow with the square of what they describe, the square root of that ratio counts. It is
the median of the others, not of all, so of two replies the larger one is found. A lone reply is compared with what was
sent to it, or with LONE. No history is needed, so a resumed run refuses the same as an unbroken one.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd import engine
from fedkd.config import RunConfig
from fedkd.engine import ClientId, Failure, Job, Reply
from fedkd.wrappers import privacy

FLOOR = 0.1  # smaller medians count as this: entries that hardly move must not make others look large
LONE = 100.0  # a lone tensor is compared with this, or with what was sent if that is larger
FEW = 1000  # smaller medians of counts count as this, where only devices know how much data they have
SLACK = 10  # an algorithm may count this many times the samples that its client has or draws
_UPDATES = ("weights", "reference")  # kinds whose entries come back changed

Name = tuple[str, str]  # kind of knowledge, and the entry in it; empty for a kind that is one tensor


@dataclass(frozen=True)
class Judged:
    """The replies that pass, failures in the place of the others, and how far each reply stands out."""

    replies: list[Reply]
    failures: list[Failure]
    ratios: Mapping[ClientId, float]


@dataclass(frozen=True)
class _Finding:
    """The tensor of a reply that stands out most: its size divided by what it is compared with, and that in words."""

    ratio: float = 0.0
    what: str = ""


def judge(
    config: RunConfig, classes: int, sizes: Sequence[int] | None, jobs: Mapping[ClientId, Job], replies: Sequence[Reply]
) -> Judged:
    """Sort the replies of one exchange. `sizes`: training samples by client, where this process knows them."""
    found, limit = _compare(jobs, replies), config.border.limit
    kept, failures = [], []
    for reply in replies:
        what = _over_count(config, classes, sizes, reply, replies)
        if not what and limit and found[reply.client].ratio > limit:
            what = f"{found[reply.client].what}: over border.limit = {limit:g} times as much"
        if what:
            failures.append(engine.failed(jobs[reply.client], what, "range"))
        else:
            kept.append(reply)
    return Judged(kept, failures, {client: finding.ratio for client, finding in found.items()})


# --- values ------------------------------------------------------------------------------------------------------


def _compare(jobs: Mapping[ClientId, Job], replies: Sequence[Reply]) -> dict[ClientId, _Finding]:
    sized = {reply.client: dict(_sizes(jobs[reply.client], reply)) for reply in replies}
    ranked: dict[Name, list[float]] = {}
    for own in sized.values():
        for name, size in own.items():
            ranked.setdefault(name, []).append(size)
    for found in ranked.values():
        found.sort()
    findings = {}
    for client, own in sized.items():
        each = (_finding(name, size, ranked[name], jobs[client]) for name, size in own.items())
        findings[client] = max(each, key=lambda finding: finding.ratio, default=_Finding())
    return findings


def _sizes(job: Job, reply: Reply) -> Iterator[tuple[Name, float]]:
    for kind in sorted(reply.payload.kinds()):
        value = getattr(reply.payload, kind)
        sent = getattr(job.payload, kind) if kind in _UPDATES else None
        for entry, part in value.items() if isinstance(value, Mapping) else [("", value)]:
            if not isinstance(part, Tensor):
                yield (kind, entry), abs(float(part))
            elif part.is_floating_point() and part.numel():
                yield (kind, entry), largest(part if sent is None else part - sent[entry])


def largest(tensor: Tensor) -> float:
    """The largest absolute value."""
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high))


def _finding(name: Name, size: float, ranked: Sequence[float], job: Job) -> _Finding:
    kind, entry = name
    place = f"{kind}: '{entry}'" if entry else kind
    does = f"{place} {'changes by up to' if kind in _UPDATES else 'has values up to'} {size:.3g}"
    if len(ranked) > 1:
        median = without(ranked, size)
        ratio = size / max(median, FLOOR)
        return _Finding(ratio**0.5 if entry.endswith("_var") else ratio, f"{does}, the others' {median:.3g} (median)")
    if kind == "numbers":
        return _Finding()  # checksums and counts among them: by itself a number has no size
    sent = getattr(job.payload, kind)
    part = sent.get(entry) if isinstance(sent, Mapping) else sent
    expected = largest(part) if isinstance(part, Tensor) and part.numel() and part.is_floating_point() else 0.0
    return _Finding(size / max(expected, LONE), f"{does}, {expected:.3g} was sent, and nobody else sent any")


def without(ranked: Sequence[float], own: float) -> float:
    """The median of sorted values without one of them; the lower one of two."""
    middle = (len(ranked) - 2) // 2
    return ranked[middle] if middle < bisect_left(ranked, own) else ranked[middle + 1]


# --- counts ------------------------------------------------------------------------------------------------------


def _over_count(
    config: RunConfig, classes: int, sizes: Sequence[int] | None, reply: Reply, replies: Sequence[Reply]
) -> str:
    """What is wrong with the counts of a reply; empty text: nothing."""
    labels, train = reply.payload.label_counts, config.train
    told, total = reply.num_examples, 0 if labels is None else int(labels.sum())
    caps = {"border.max_examples": config.border.max_examples}
    if sizes is not None:
        caps["the partition"] = sizes[reply.client]
    step = config.privacy.size_step  # an honest client tells its size in these steps, perhaps rounded up
    known = {source: privacy.in_steps(cap, step) for source, cap in caps.items() if cap is not None}
    if not known:
        return _over_others(config, reply, replies)
    source = min(known, key=known.__getitem__)
    cap = known[source]
    if told > cap:
        return f"num_examples = {told}, at most {cap} by {source}"
    drawn = train.steps * train.batch if train.steps is not None else train.epochs * cap
    most = SLACK * (max(cap, drawn) + classes)
    if total > most and len(replies) > 1:  # noise that an algorithm adds to its counts is in all of them
        most = max(most, SLACK * int(without(sorted(map(_labels, replies)), _labels(reply))))
    return f"label_counts: {total} in all, at most {most} where {source} gives {cap} samples" if total > most else ""


def _over_others(config: RunConfig, reply: Reply, replies: Sequence[Reply]) -> str:
    """The same where only devices know how much data they have: compared with the others' counts, as values are."""
    for name, count in (("num_examples", _examples), ("label_counts in all", _labels)):
        ranked = sorted(map(count, replies))
        if len(ranked) < 2 or not config.border.limit:
            continue
        own, median = count(reply), without(ranked, count(reply))
        if own > config.border.limit * max(median, FEW):
            return f"{name} = {own:g}, the others' {median:g} (median): set border.max_examples if this is honest"
    return ""


def _examples(reply: Reply) -> float:
    return float(reply.num_examples)


def _labels(reply: Reply) -> float:
    return 0.0 if reply.payload.label_counts is None else float(reply.payload.label_counts.sum())
