"""Settling an exchange: replies become the server's next state, which is always finite.

If the replies together lead to non-finite values, the round is aggregated again without the few that stand out most.
If that does not help, the round is not aggregated. In both cases the run continues from a finite state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedkd import engine, state_values
from fedkd.engine import ClientId, Failure, Job, Reply
from fedkd.payload import KINDS, Findings, Payload
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy

MOST_CULPRITS = 4  # the most replies to leave out: each costs up to three more aggregations
# Exceptions of arithmetic on bad values in torch, numpy and Python. Other errors are bugs, and pass.
_OF_VALUES = (ArithmeticError, ValueError, RuntimeError, IndexError)

Following = Callable[[tuple[ClientId, ...]], Cohort | None]  # from the clients that replied to the next cohort


@dataclass(frozen=True)
class Settled:
    """The result of an exchange. `replies` are those that count; none: no subset gave a finite state."""

    server: Any
    findings: Findings
    replies: Sequence[Reply]
    failures: list[Failure]


@dataclass(frozen=True)
class _Attempt:
    server: Any
    findings: Findings
    wrong: str = ""  # where the state is not finite, or the raised error
    error: Exception | None = None


def settle(
    strategy: Strategy[Any],
    server: Any,
    jobs: Mapping[ClientId, Job],
    replies: Sequence[Reply],
    ratios: Mapping[ClientId, float],
    quorum: int,
    stream: Stream,
    following: Following,
) -> Settled:
    """Aggregate the replies, or a subset that gives a finite state. `ratios`: how much each reply stands out."""

    def attempt(chosen: Sequence[Reply]) -> _Attempt:
        return _attempt(strategy, server, chosen, stream, following)

    first = attempt(replies)
    if not first.wrong:
        return Settled(first.server, first.findings, replies, [])
    suspects = sorted(replies, key=lambda reply: (-ratios.get(reply.client, 0.0), reply.client))
    tried = [first]
    for out in _left_out(suspects, len(replies) - max(1, quorum)):
        tried.append(result := attempt(_without(replies, out)))
        if not result.wrong:
            out, result = _readmitted(replies, out, result, attempt)
            reason = f"with this reply {first.wrong}; without it everything is finite"
            failures = [engine.failed(jobs[reply.client], reason, "range") for reply in out]
            return Settled(result.server, result.findings, _without(replies, out), failures)
    if first.error is not None and all(result.error is not None for result in tried):
        raise first.error  # leaving out replies did not help: no reply is at fault
    reason = f"the round is not aggregated: {first.wrong}, and leaving out a few replies does not help"
    return Settled(server, {}, [], [engine.failed(jobs[reply.client], reason, "unsettled") for reply in replies])


def _left_out(suspects: list[Reply], most: int) -> Iterator[list[Reply]]:
    """The replies to leave out in each attempt: first each suspect alone, then more and more together."""
    if most > 0:
        yield from ([reply] for reply in suspects[:MOST_CULPRITS])
    yield from (suspects[:number] for number in range(2, min(most, MOST_CULPRITS) + 1))


def _readmitted(
    replies: Sequence[Reply], out: list[Reply], result: _Attempt, attempt: Callable[[Sequence[Reply]], _Attempt]
) -> tuple[list[Reply], _Attempt]:
    """Take back the replies that were left out without being a culprit."""
    for reply in out[:-1]:
        fewer = [other for other in out if other is not reply]
        again = attempt(_without(replies, fewer))
        if not again.wrong:
            out, result = fewer, again
    return out, result


def _without(replies: Sequence[Reply], out: Sequence[Reply]) -> list[Reply]:
    clients = {reply.client for reply in out}
    return [reply for reply in replies if reply.client not in clients]


def _attempt(
    strategy: Strategy[Any], server: Any, replies: Sequence[Reply], stream: Stream, following: Following
) -> _Attempt:
    try:
        with stream.child("layers").as_global():  # dropout of a student that the server trains draws from it
            after, findings = strategy.aggregate(server, replies, stream)
        wrong = _wrong(strategy, after, following(tuple(reply.client for reply in replies)))
    except _OF_VALUES as error:
        return _Attempt(server, {}, f"{type(error).__name__}: {error}", error)
    return _Attempt(after, findings, wrong)


def _wrong(strategy: Strategy[Any], server: Any, cohort: Cohort | None) -> str:
    """Where a state, or its next payloads, are not finite; empty if they are finite."""
    tensors, _ = state_values.flatten(server)
    for name, tensor in tensors.items():
        if not state_values.is_finite(tensor):
            return f"the server's '{name}' is not finite"
    seen = {id(tensor) for tensor in tensors.values()}
    payloads = strategy.plan(server, cohort) if cohort is not None else {}
    for payload in {id(payload): payload for payload in payloads.values()}.values():
        for kind, tensor in _sent(payload):
            if id(tensor) not in seen and not state_values.is_finite(tensor):
                return f"the {kind} to be sent next are not finite"
            seen.add(id(tensor))
    return ""


def _sent(payload: Payload) -> Iterator[tuple[str, Tensor]]:
    for kind in KINDS:
        value = getattr(payload, kind)
        parts = value.values() if isinstance(value, Mapping) else [value]
        yield from ((kind, part) for part in parts if isinstance(part, Tensor))
