"""Encodes jobs, replies and failures as Flower records, and decodes them. No other module knows the wire format.

One record per kind of knowledge, arrays as npy without pickle, exact to the bit. Decoding is strict: it compares the
header of an array with the received bytes before it allocates anything. It raises `Malformed` for any mismatch, which
the engine turns into a Failure.

The memory of a client travels with its jobs and replies, as with `inline` and `ray`: the driver owns it. Devices keep
their own and send only a stub (deploy/memory.py).
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedkd import engine, state_values, strict_json
from fedkd.border.checks import MAX_NUMBERS, printable
from fedkd.engine import ClientState, Failure, Job, Reply, Result
from fedkd.payload import KINDS, Numbers, Payload, Weights
from simulations.flower.message_limits import OWN, Limits, TooLarge

Record = ArrayRecord | ConfigRecord | MetricRecord
R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

_NAMED = frozenset({"weights", "reference", "generator", "samples"})  # kinds that are mappings of names to tensors
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(r"\{'descr': '([<|][a-z]\d)', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,300})\), \} *\n")
_DTYPES = frozenset({"<f4", "<f8", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "|b1"})
_CAUSES = frozenset({"raised", "no_data"})  # a client may report these; the others belong to engine and border
_MAX_DETAIL = 20_000  # characters of a traceback
_MAX_COUNT = 2**63 - 1  # of rounds and samples in a client's memory
_HEAD = {"task": str, "client": int, "round": int, "exchange": int}


class Malformed(ValueError):
    """A message that cannot be read. `cause` goes into `engine.Failure`."""

    def __init__(self, what: str, cause: str) -> None:
        self.cause = cause
        super().__init__(printable(what))


def encode_job(job: Job, payload: Mapping[str, Record] | None = None) -> RecordDict:
    """A job as records; `payload`: its payload's encoding, if that exists already."""
    records: dict[str, Record] = {"job": _head(job), **encode_state(job.state)}
    return RecordDict({**records, **(encode_payload(job.payload) if payload is None else payload)})


def decode_job(content: RecordDict, limits: Limits = OWN) -> Job:
    """The inverse of `encode_job`. Raises Malformed."""
    _check_size(content, limits)
    head = _fields(content, "job", _HEAD)
    return Job(payload=decode_payload(content), state=decode_state(content), **head)


def encode_result(result: Result) -> RecordDict:
    """A reply or failure as records."""
    if isinstance(result, Failure):
        texts = {"what": result.what, "cause": result.cause, "detail": result.detail}
        return RecordDict({"failure": ConfigRecord({name: text for name, text in texts.items() if text})})
    head = _head(result)
    head["num_examples"], head["seconds"] = result.num_examples, result.seconds
    records: dict[str, Record] = {"reply": head, "reply.numbers": _metrics(result.numbers)}
    if result.probe is not None:
        records["reply.probe"] = ArrayRecord({"probe": encode_tensor(result.probe)})
    if result.by_label is not None:
        records["reply.by_label"] = ArrayRecord({"by_label": encode_tensor(result.by_label)})
    return RecordDict({**records, **encode_state(result.state), **encode_payload(result.payload)})


def decode_result(content: RecordDict, job: Job, limits: Limits = OWN) -> Result:
    """The answer to `job`. Raises Malformed, also for an answer to another job: no client may answer for another."""
    _check_size(content, limits)
    if "failure" in content:
        return _failure(content, job)
    head = _fields(content, "reply", {**_HEAD, "num_examples": int, "seconds": float})
    got, expected = tuple(head[name] for name in _HEAD), (job.task, job.client, job.round, job.exchange)
    if got != expected:
        raise Malformed(f"reply is for (task, client, round, exchange) {got}, expected {expected}", "stale")
    return Reply(
        payload=decode_payload(content),
        state=decode_state(content),
        numbers=_numbers(content, "reply.numbers"),
        probe=_optional(content, "probe"),
        by_label=_optional(content, "by_label"),
        **head,
    )


def _optional(content: RecordDict, name: str) -> Tensor | None:
    """A tensor beside the payload, if there is one."""
    record = f"reply.{name}"
    return _arrays(content, record, (name,))[name] if record in content else None


def encode_payload(payload: Payload) -> dict[str, Record]:
    """One record per kind, called `payload.KIND`."""
    return {f"payload.{kind}": _encode_kind(kind, getattr(payload, kind)) for kind in KINDS if kind in payload.kinds()}


def decode_payload(content: RecordDict) -> Payload:
    """The inverse of `encode_payload`; ignores other records. Raises Malformed."""
    present = [name.removeprefix("payload.") for name in content if name.startswith("payload.")]
    if unknown := set(present) - set(KINDS):
        raise Malformed(f"payload has unknown kinds {sorted(unknown)}", "kinds")
    kinds: dict[str, Any] = {kind: _decode_kind(content, kind) for kind in present}
    return Payload(**kinds)


def encode_state(state: ClientState) -> dict[str, Record]:
    """A client's memory: tensors as arrays, everything else as JSON."""
    tensors, plain = state_values.flatten(state)
    arrays = ArrayRecord({name: encode_tensor(tensor) for name, tensor in tensors.items()})
    return {"state": arrays, "state.plain": ConfigRecord({"json": json.dumps(plain)})}


def decode_state(content: RecordDict) -> ClientState:
    """The inverse of `encode_state`. Raises Malformed."""
    plain = _fields(content, "state.plain", {"json": str})["json"]
    tensors = _arrays(content, "state")
    try:
        state = state_values.restore(ClientState(), strict_json.parse(plain), tensors)
    except (state_values.Misfit, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Malformed(f"state: {type(error).__name__}: {error}", "names") from error
    counts = (getattr(state, name, None) for name in ("epoch", "position", "last_round"))
    if not isinstance(state, ClientState) or not all(map(_is_count, counts)):
        raise Malformed("state is not a client's memory", "dtype")
    if not all(isinstance(getattr(state, name), Mapping) for name in ("kept", "memory", "optimiser")):
        raise Malformed("state: kept, memory and optimiser must be mappings", "dtype")
    if not all(isinstance(value, Tensor) for value in state.kept.values()):
        raise Malformed("state: kept entries must be tensors", "dtype")
    return state


def encode_weights(weights: Weights) -> ArrayRecord:
    """Named tensors as arrays."""
    return ArrayRecord({name: encode_tensor(tensor) for name, tensor in weights.items()})


def encode_tensor(tensor: Tensor) -> Array:
    """A tensor as npy bytes: 128 of header, then its own."""
    return Array(tensor.detach().cpu().contiguous().numpy())


def decode_tensor(array: Array, name: str) -> Tensor:
    """The tensor in npy bytes, as a copy. Raises Malformed unless header and bytes agree.

    Ignores the array's own `dtype` and `shape`: they are unverified claims.
    """
    data = array.data
    start = 10 + int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10:start].decode("latin-1"))
    if data[:8] != _MAGIC or header is None:
        raise Malformed(f"{name} is not an npy array", "dtype")
    code, fortran, dimensions = header.groups()
    if code not in _DTYPES:
        raise Malformed(f"{name} has dtype {code}, allowed are {', '.join(sorted(_DTYPES))}", "dtype")
    shape = tuple(int(part) for part in dimensions.replace(",", " ").split())
    dtype = np.dtype(code)
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise Malformed(f"{name} says it has shape {shape} of {dtype}, but brings {len(data) - start} bytes", "size")
    try:
        flat = np.frombuffer(data, dtype, offset=start)
        return torch.from_numpy(flat.reshape(shape, order="F" if fortran == "True" else "C").copy(order="C"))
    except (ValueError, OverflowError) as error:  # more axes, or a longer one, than numpy has
        raise Malformed(f"{name}: {error}", "shape") from error


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _check_size(content: RecordDict, limits: Limits) -> None:
    try:
        limits.check(content)
    except TooLarge as error:
        raise Malformed(str(error), "size") from None


def _encode_kind(kind: str, value: Any) -> Record:
    if kind == "numbers":
        return _metrics(value)
    return encode_weights(value if kind in _NAMED else {kind: value})


def _decode_kind(content: RecordDict, kind: str) -> Weights | Tensor | Numbers:
    record = f"payload.{kind}"
    if kind == "numbers":
        return _numbers(content, record)
    return _arrays(content, record) if kind in _NAMED else _arrays(content, record, (kind,))[kind]


def _head(about: Job | Reply) -> ConfigRecord:
    return ConfigRecord({name: getattr(about, name) for name in _HEAD})


def _failure(content: RecordDict, job: Job) -> Failure:
    record = _record(content, "failure", ConfigRecord)
    texts = {name: value if isinstance(value := record.get(name), str) else "" for name in ("what", "cause", "detail")}
    cause = texts["cause"] if texts["cause"] in _CAUSES else "raised"
    what = printable(texts["what"]) or "the client failed without giving a reason"
    return engine.failed(job, what, cause, printable(texts["detail"], _MAX_DETAIL, keep="\n"))


def _record(content: RecordDict, name: str, kind: type[R]) -> R:
    record = content.get(name)
    if not isinstance(record, kind):
        got = "missing" if record is None else f"a {type(record).__name__}"
        raise Malformed(f"record '{name}' is {got}, expected a {kind.__name__}", "kinds")
    return record


def _fields(content: RecordDict, name: str, types: Mapping[str, type]) -> dict[str, Any]:
    """The values of a ConfigRecord, exactly these and of exactly these types."""
    record = _record(content, name, ConfigRecord)
    if set(record) != set(types):
        raise Malformed(f"record '{name}' has {sorted(record)}, expected {sorted(types)}", "names")
    for field, kind in types.items():
        if type(record[field]) is not kind:
            got = type(record[field]).__name__
            raise Malformed(f"record '{name}': {field} is a {got}, expected {kind.__name__}", "dtype")
    return dict(record)


def _arrays(content: RecordDict, name: str, expected: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    record = _record(content, name, ArrayRecord)
    if expected is not None and tuple(record) != expected:
        raise Malformed(f"record '{name}' has {sorted(record)}, expected {sorted(expected)}", "names")
    return {entry: decode_tensor(array, f"{name}: '{entry}'") for entry, array in record.items()}


def _metrics(numbers: Numbers) -> MetricRecord:
    return MetricRecord({name: value if type(value) is int else float(value) for name, value in numbers.items()})


def _numbers(content: RecordDict, name: str) -> Numbers:
    record = _record(content, name, MetricRecord)
    if len(record) > MAX_NUMBERS:
        raise Malformed(f"record '{name}' has {len(record)} numbers, at most {MAX_NUMBERS} are read", "size")
    for entry, value in record.items():
        if isinstance(value, list):
            raise Malformed(f"record '{name}': '{entry}' is a list, expected a number", "dtype")
    return dict(record)  # type: ignore[arg-type]
