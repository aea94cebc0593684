"""The guard refuses well-formed replies that cannot be honest: it compares replies with each other and with data sizes.

The size of a float tensor in a reply is its largest absolute value; for weights that the server sent, that of their
change. The guard compares it with the median size of the same tensor in the other replies. It refuses a reply over
`border.limit` times as large; for variances, which grow quadratically, it uses the square root of the ratio. The median
is that of the others, not of all, so of two replies it finds the larger one. It compares a lone reply with what it was
sent, or with LONE. The guard needs no history, so a resumed run refuses the same replies as an unbroken one.
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

FLOOR = 0.1  # smaller medians count as this: else entries that hardly move make others look large
LONE = 100.0  # a lone tensor is compared with this, or with what was sent if that is larger
FEW = 1000  # smaller medians of counts count as this, if only devices know their data sizes
SLACK = 10  # an algorithm may count this many times the samples that its client has or draws
_UPDATES = ("weights", "reference")  # kinds whose entries come back changed

Name = tuple[str, str]  # kind of knowledge, and the entry in it; empty for a kind that is one tensor


@dataclass(frozen=True)
class Screened:
    """The replies that pass, failures for the others, and how much each reply stands out."""

    replies: list[Reply]
    failures: list[Failure]
    ratios: Mapping[ClientId, float]


@dataclass(frozen=True)
class _Finding:
    """The tensor of a reply that stands out most: its relative size, and a sentence about it."""

    ratio: float = 0.0
    what: str = ""


def screen(
    config: RunConfig, classes: int, sizes: Sequence[int] | None, jobs: Mapping[ClientId, Job], replies: Sequence[Reply]
) -> Screened:
    """Sort the replies of one exchange. `sizes`: training samples by client, if this process knows them."""
    findings, limit = _compare(jobs, replies), config.border.limit
    kept, failures = [], []
    for reply in replies:
        what = _over_count(config, classes, sizes, reply, replies)
        if not what and limit and findings[reply.client].ratio > limit:
            what = f"{findings[reply.client].what}: over border.limit = {limit:g} times as much"
        if what:
            failures.append(engine.failed(jobs[reply.client], what, "range"))
        else:
            kept.append(reply)
    return Screened(kept, failures, {client: finding.ratio for client, finding in findings.items()})


# --- values ------------------------------------------------------------------------------------------------------


def _compare(jobs: Mapping[ClientId, Job], replies: Sequence[Reply]) -> dict[ClientId, _Finding]:
    sized = {reply.client: dict(_sizes(jobs[reply.client], reply)) for reply in replies}
    ranked: dict[Name, list[float]] = {}
    for own in sized.values():
        for name, size in own.items():
            ranked.setdefault(name, []).append(size)
    for sizes in ranked.values():
        sizes.sort()
    findings = {}
    for client, own in sized.items():
        candidates = (_finding(name, size, ranked[name], jobs[client]) for name, size in own.items())
        findings[client] = max(candidates, key=lambda finding: finding.ratio, default=_Finding())
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
        return _Finding()  # includes checksums and counts: a number alone has no expected size
    sent = getattr(job.payload, kind)
    part = sent.get(entry) if isinstance(sent, Mapping) else sent
    expected = largest(part) if isinstance(part, Tensor) and part.numel() and part.is_floating_point() else 0.0
    return _Finding(size / max(expected, LONE), f"{does}, {expected:.3g} was sent, and no other client sent any")


def without(ranked: Sequence[float], own: float) -> float:
    """The median of sorted values without one of them; of two middle values, the lower one."""
    middle = (len(ranked) - 2) // 2
    return ranked[middle] if middle < bisect_left(ranked, own) else ranked[middle + 1]


# --- counts ------------------------------------------------------------------------------------------------------


def _over_count(
    config: RunConfig, classes: int, sizes: Sequence[int] | None, reply: Reply, replies: Sequence[Reply]
) -> str:
    """What is wrong with the counts of a reply; empty if nothing is."""
    labels, train = reply.payload.label_counts, config.train
    claimed, total = reply.num_examples, 0 if labels is None else int(labels.sum())
    caps = {"border.max_examples": config.border.max_examples}
    if sizes is not None:
        caps["the partition"] = sizes[reply.client]
    step = config.privacy.size_step  # an honest client reports its size in these steps, perhaps rounded up
    known = {source: privacy.in_steps(cap, step) for source, cap in caps.items() if cap is not None}
    if not known:
        return _over_others(config, reply, replies)
    source = min(known, key=known.__getitem__)
    cap = known[source]
    if claimed > cap:
        return f"num_examples = {claimed}, at most {cap} by {source}"
    drawn = train.steps * train.batch if train.steps is not None else train.epochs * cap
    most = SLACK * (max(cap, drawn) + classes)
    if total > most and len(replies) > 1:  # noise that an algorithm adds is in all clients' counts
        most = max(most, SLACK * int(without(sorted(map(_labels, replies)), _labels(reply))))
    return f"label_counts: {total} in all, at most {most} where {source} gives {cap} samples" if total > most else ""


def _over_others(config: RunConfig, reply: Reply, replies: Sequence[Reply]) -> str:
    """`_over_count` if only devices know their data sizes: compares counts with the others', like values."""
    for name, count in (("num_examples", lambda reply: float(reply.num_examples)), ("label_counts in all", _labels)):
        ranked = sorted(map(count, replies))
        if len(ranked) < 2 or not config.border.limit:
            continue
        own, median = count(reply), without(ranked, count(reply))
        if own > config.border.limit * max(median, FEW):
            return f"{name} = {own:g}, the others' {median:g} (median): set border.max_examples if this is honest"
    return ""


def _labels(reply: Reply) -> float:
    return 0.0 if reply.payload.label_counts is None else float(reply.payload.label_counts.sum())
