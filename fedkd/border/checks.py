"""The border checks every reply once, before an algorithm sees it. A client's mistake is a Failure.

The border first detaches the values (`detached.py`), so that nothing changes them between check and use.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedkd import engine, plain_text, state_values
from fedkd.border import detached
from fedkd.engine import ClientId, ClientState, Failure, Job, Reply, Result
from fedkd.payload import Payload, Weights

MAX_EXAMPLES = 10**9
MAX_NUMBERS = 256  # scalars a reply may carry
MAX_NAME = 200  # characters of a name that a client chooses: the ledger records names of numbers
MAX_SAMPLES = 100_000  # rows of `samples` and `probe_logits` a reply may carry
MAX_REASON = 500  # characters of a refusal: the ledger records it, and it quotes text of the client
MAX_DETAIL = 20_000  # characters of a traceback


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The form of a usable reply to one training job. C classes, d latent width."""

    kinds: frozenset[str]  # kinds of knowledge that must come; no others may
    classes: int
    latent: int
    weights: Weights | None = None  # the sent entries; a reply must have the same names, shapes and dtypes
    reference: Weights | None = None  # as `weights`
    probe: int = 0  # probe images


class Refused(Exception):
    """Why a reply is refused. `cause` is one of `engine.CAUSES`."""

    def __init__(self, cause: str, what: str) -> None:
        self.cause, self.what = cause, printable(what)
        super().__init__(self.what)


def printable(text: str, most: int = MAX_REASON, keep: str = "") -> str:
    """Text of a client, safe for display: characters that could steer a terminal are escaped."""
    return plain_text.printable(text, most, keep)


def admit(
    result: Result, job: Job, expected: Expectation, inspect: Callable[[Reply], None] = lambda reply: None
) -> Result:
    """The detached, usable reply, else a Failure. `inspect` comes last: the algorithm's check, which raises Refused."""

    def check(reply: Reply) -> None:
        if (kinds := reply.payload.kinds()) != expected.kinds:
            raise Refused("kinds", f"payload has kinds {sorted(kinds)}, expected {sorted(expected.kinds)}")
        for kind in sorted(kinds):
            _CHECKS[kind](kind, getattr(reply.payload, kind), expected)
        _check_state(reply.state)
        _check_probe(reply.probe, expected)
        inspect(reply)

    return _admit(result, job, check)


def admit_evaluation(job: Job, result: Result, classes: int) -> Result:
    """`admit` for an evaluation job: counts must fit, numbers must be finite."""

    def check(reply: Reply) -> None:
        correct, loss_sum = reply.numbers.get("correct"), reply.numbers.get("loss_sum")
        if correct is None or loss_sum is None or not 0 <= correct <= reply.num_examples:
            raise Refused("range", f"numbers: {correct} correct of {reply.num_examples}, loss_sum {loss_sum}")
        _check_by_label(reply, classes)
        _check_logits(reply, job, classes)

    return _admit(result, job, check)


def admit_shared(job: Job, result: Result) -> list[Result]:
    """`admit` for a job of many clients: one result per client, from its row of the table."""

    def check(reply: Reply) -> None:
        judged: Any = reply.judged
        if not isinstance(judged, Tensor) or judged.dtype != torch.float64 or judged.shape != (len(job.clients), 3):
            raise Refused("shape", f"judged is not a table of 3 numbers for each of {len(job.clients)} clients")

    reply, blank = _admit(result, job, check), (Payload(), ClientState())
    if isinstance(reply, Failure):
        return [engine.failed(_of(job, c), reply.what, reply.cause, reply.detail) for c in job.clients]
    assert reply.judged is not None
    return [_scored(job, client, row, *blank) for client, row in zip(job.clients, reply.judged.tolist(), strict=True)]


def _of(job: Job, client: ClientId) -> Job:
    return replace(job, task="evaluate", client=client, clients=())


def _scored(job: Job, client: ClientId, row: list[float], payload: Payload, state: ClientState) -> Result:
    """The reply for a row. All share one empty payload and state: making them costs most."""
    count, correct, loss_sum = row
    what = f"judged: {correct} correct of {count}, loss_sum {loss_sum}"
    if not all(map(math.isfinite, row)):
        return engine.failed(_of(job, client), what, "non_finite")
    if not (count.is_integer() and 0 < count <= MAX_EXAMPLES and 0 <= correct <= count):
        return engine.failed(_of(job, client), what, "range")
    return Reply(
        client=client,
        round=job.round,
        task="evaluate",
        payload=payload,
        state=state,
        num_examples=int(count),
        numbers={"correct": correct, "loss_sum": loss_sum},
    )


def _admit(result: Result, job: Job, check: Callable[[Reply], None]) -> Result:
    if isinstance(result, Failure):
        return _bounded(result, job)
    try:
        reply = detached.reply(result)
        _check_frame(reply, job)
        _check_numbers("numbers", reply.numbers)
        _check_numbers("reply", {"seconds": reply.seconds})
        check(reply)
    except Refused as refusal:
        return engine.failed(job, refusal.what, refusal.cause)
    except Exception as error:  # noqa: BLE001  # an unforeseen error must not stop the other clients
        return _bounded(engine.failure(job, error, "unreadable"), job)
    return reply


def _bounded(failure: Failure, job: Job) -> Failure:
    """A failure of this job with bounded text: an exception may quote any text."""
    what = plain_text.printable(str(failure.what), MAX_REASON, keep="\n")
    detail = plain_text.printable(str(failure.detail), MAX_DETAIL, keep="\n")
    return engine.failed(job, what, failure.cause if failure.cause in engine.CAUSES else "raised", detail)


def check_rows(reply: Reply, rows: int) -> None:
    """Checks that `probe_logits` have `rows` rows. Raises Refused."""
    got = reply.payload.probe_logits
    if got is not None and len(got) != rows:
        raise Refused("shape", f"probe_logits has {len(got)} rows, expected {rows}")


def check_entries(kind: str, value: Any, wanted: Mapping[str, Tensor]) -> None:
    """Raises Refused unless `value` has the names, shapes and types of `wanted`, and only finite values."""
    if not isinstance(value, Mapping) or set(value) != set(wanted):
        got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise Refused("names", f"{kind} has entries {got}, expected {sorted(wanted)}")
    for name, reference in wanted.items():
        _check_tensor(f"{kind}: '{name}'", value[name], tuple(reference.shape), reference.dtype)
        if name.endswith("running_var") and bool((value[name] < 0).any()):
            raise Refused("range", f"{kind}: '{name}' has negative variances")


def _check_frame(reply: Reply, job: Job) -> None:
    got = (reply.task, reply.client, reply.round, reply.exchange)
    wanted = (job.task, job.client, job.round, job.exchange)
    if got != wanted or not all(type(number) is int for number in got[1:]):  # 2.0 and True are no rounds
        raise Refused("stale", f"reply is for (task, client, round, exchange) {got}, expected {wanted}")
    count: Any = reply.num_examples
    if type(count) is not int or not 0 < count <= MAX_EXAMPLES:
        raise Refused("range", f"num_examples = {count!r}, expected an integer from 1 to {MAX_EXAMPLES}")


def _check_state(state: Any) -> None:
    """Checks a client's memory: a checkpoint can hold it, and it is finite, because the client trains from it."""
    if type(state) is not ClientState or not isinstance(state.kept, dict):
        raise Refused("dtype", f"state is a {type(state).__name__}, expected a client's memory")
    for name in ("epoch", "position", "last_round"):
        count: Any = getattr(state, name)
        if type(count) is not int or not 0 <= count < 2**63:
            raise Refused("range", f"state: {name} = {count!r}, expected an integer from 0")
    if wrong := [name for name, entry in state.kept.items() if not isinstance(entry, Tensor)]:
        raise Refused("dtype", f"state: kept entry '{wrong[0]}' is not a tensor")
    try:
        tensors, _ = state_values.flatten(state)
    except TypeError as error:
        raise Refused("dtype", f"state: {error}") from error
    for name, tensor in tensors.items():
        if not state_values.is_finite(tensor):
            raise Refused("non_finite", f"state: '{name}' has values that are not finite")


def _check_tensor(name: str, value: Any, shape: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise Refused("dtype", f"{name} is a {type(value).__name__}, expected a tensor")
    if value.dtype != dtype:
        raise Refused("dtype", f"{name} has dtype {value.dtype}, expected {dtype}")
    if shape is not None and tuple(value.shape) != shape:
        raise Refused("shape", f"{name} has shape {tuple(value.shape)}, expected {shape}")
    if not state_values.is_finite(value):
        bad = int((~torch.isfinite(value)).sum())
        raise Refused("non_finite", f"{name}: {bad} of {value.numel()} values are not finite")


def _check_weights(kind: str, value: Any, expected: Expectation) -> None:
    check_entries(kind, value, getattr(expected, kind) or {})


def _check_label_counts(kind: str, value: Any, expected: Expectation) -> None:
    _check_tensor(kind, value, (expected.classes,), torch.int64)
    if bool((value < 0).any()) or int(value.max()) > MAX_EXAMPLES:
        raise Refused("range", f"{kind} has values outside 0 to {MAX_EXAMPLES}")


def _check_probe_logits(kind: str, value: Any, expected: Expectation) -> None:
    _check_tensor(kind, value, None, torch.float32)
    if value.dim() != 2 or value.shape[1] != expected.classes or len(value) > MAX_SAMPLES:
        raise Refused("shape", f"{kind} has shape {tuple(value.shape)}, expected (samples, {expected.classes})")


def _check_named(kind: str, value: Any, expected: Expectation) -> None:
    if not isinstance(value, Mapping):
        raise Refused("names", f"{kind} is not a mapping of names to tensors")
    for name, tensor in value.items():
        _check_name(kind, name)
        dtype = getattr(tensor, "dtype", torch.float32)
        wanted = dtype if dtype in {torch.float32, torch.float16, torch.int64, torch.uint8} else torch.float32
        _check_tensor(f"{kind}: '{name}'", tensor, None, wanted)
        if tensor.dim() == 0 or len(tensor) > MAX_SAMPLES:
            raise Refused("size", f"{kind}: '{name}' has shape {tuple(tensor.shape)}, at most {MAX_SAMPLES} rows")


def _check_name(kind: str, name: Any) -> None:
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
        shown = repr(name[:40]) if isinstance(name, str) else f"a {type(name).__name__}"
        raise Refused("names", f"{kind} has a name that is not printable text of {MAX_NAME} characters: {shown}")


def _check_numbers(kind: str, value: Any, expected: Expectation | None = None) -> None:
    if not isinstance(value, Mapping) or len(value) > MAX_NUMBERS:
        raise Refused("names", f"{kind} is not a mapping of at most {MAX_NUMBERS} names to numbers")
    for name, number in value.items():
        _check_name(kind, name)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise Refused("dtype", f"{kind}: {name!r} = {number!r} is not a named number")
        if isinstance(number, int) and abs(number) >= 2**63:
            raise Refused("range", f"{kind}: '{name}' does not fit in 64 bits")
        if not math.isfinite(number):
            raise Refused("non_finite", f"{kind}: '{name}' is not finite")


def _check_by_label(reply: Reply, classes: int) -> None:
    if reply.by_label is None:
        return
    _check_tensor("by_label", reply.by_label, (2, classes), torch.int64)
    seen_C, right_C = reply.by_label
    sums = (int(seen_C.sum()), int(right_C.sum()))
    if bool((right_C < 0).any() | (right_C > seen_C).any()) or sums != (reply.num_examples, reply.numbers["correct"]):
        raise Refused("range", "by_label does not add up to what numbers say")


def _check_logits(reply: Reply, job: Job, classes: int) -> None:
    """Not their values: a metric that is no number is null in the ledger."""
    sent: Any = reply.logits
    got = (tuple(sent.shape), sent.dtype) if isinstance(sent, Tensor) else sent
    wanted = ((reply.num_examples, classes), torch.float32) if job.wants_logits else None
    if got != wanted:
        raise Refused("shape", f"logits are {got}, expected {wanted}")


def _check_probe(value: Any, expected: Expectation) -> None:
    if value is None:
        return
    _check_tensor("probe", value, (expected.probe,), torch.uint8)
    if expected.probe and int(value.max()) >= expected.classes:
        raise Refused("range", f"probe has labels outside 0 to {expected.classes - 1}")


_CHECKS: Mapping[str, Callable[[str, Any, Expectation], None]] = {
    "weights": _check_weights,
    "reference": _check_weights,
    "generator": _check_named,
    "class_logits": lambda kind, value, e: _check_tensor(kind, value, (e.classes, e.classes), torch.float32),
    "prototypes": lambda kind, value, e: _check_tensor(kind, value, (e.classes, e.latent), torch.float32),
    "label_counts": _check_label_counts,
    "probe_logits": _check_probe_logits,
    "samples": _check_named,
    "numbers": _check_numbers,
}
