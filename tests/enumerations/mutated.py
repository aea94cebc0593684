"""No message that a client could send ends a round, is decoded without limit, or is admitted where it should not be.

    python tests/enumerations/mutated.py                       20,000 messages: about 10 minutes of CPU time
    python tests/enumerations/mutated.py --limit 77000 --seed 3
    python tests/enumerations/mutated.py --only 1234

Honest replies of several algorithms are encoded as a device sends them and mutated, one to three times each: records
dropped, renamed, exchanged; arrays with other bytes, headers, types, values; texts of any kind in the place of the
memory; numbers and counts of any size; bits of the whole message flipped. Each goes the way of a device's reply:
through Flower's own encoding, the codec with the limits of a deployment, and the border. What must come: a Reply or a
Failure, within a second, never an exception; what is admitted has finite numbers, printable names, and counts of at
most 64 bits, and its rows can be written to the ledger. Messages that Flower itself cannot read are counted separately.
The draws come from `--seed`; a message that fails is printed with its number.
"""

import argparse
import json
import logging
import math
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import algorithms
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto

from fedkd.border import checks
from fedkd.engine import Failure, Job, Reply, Result
from fedkd.record import ledger
from simulations.deploy import engine
from simulations.flower import codec
from simulations.flower.codec import Malformed

ALGORITHMS = ("fedavg", "fedgen", "fedd2s", "fedproto", "feddistill", "scaffold", "fml", "fedrep")
SECONDS = 1.0  # that a message may take; on a busy machine the CPU's, not the clock's
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2**31, 2**63 - 1, -(2**63), 0.5, -0.0, 1e30, 1e308, math.nan, math.inf, -math.inf)
TEXTS = (
    "",
    "{}",
    "[]",
    "null",
    "[" * 5000,
    '{"a":' * 5000,
    "9" * 5000,
    '{"fields": {"kept": {"map": []}}}',
    '{"fields": {"kept": {"map": [["a", {"tensor": "b"}]]}, "memory": {"map": []}}}',
    "\ud800",
    "\u202e\x00",
    "x" * (1 << 20),
)
NAMES = ("", "a", "\x00", "\u202e", "x" * 300, "x" * (1 << 20), "../../etc", "head.weight", "weights")

Case = tuple[str, Job, Reply, checks.Expectation, Callable[[Reply], None]]


def cases(names: Sequence[str] = ALGORITHMS) -> list[Case]:
    """Honest replies of the second round of each algorithm, with what is expected of them."""
    found: list[Case] = []
    for name in names:
        trail = algorithms.trail((f"strategy={name}",))
        experiment, jobs = trail.experiment, {(job.client, job.round, job.exchange): job for job in trail.jobs}
        for exchange in trail.round(2):
            for reply in exchange.replies[:2]:
                job = jobs[reply.client, reply.round, reply.exchange]
                expected = checks.Expectation(
                    kinds=trail.strategy.expected_kinds(exchange.cohort),
                    classes=experiment.problem.classes,
                    latent=experiment.problem.of(job.client).latent,
                    weights=job.payload.weights,
                    reference=job.payload.reference,
                    probe=len(experiment.probe_labels),
                )
                found.append((name, job, reply, expected, partial(trail.strategy.inspect, exchange.before, job)))
    return found


def one(found: Sequence[Case], seed: int, number: int) -> tuple[str, str, str]:
    """One message: what was done to it, what came of it in a word, and what is wrong with that, or empty text."""
    draw = random.Random(f"{seed} {number}")
    name, job, reply, expected, inspect = draw.choice(found)
    content = codec.encode_result(reply)
    done = [draw.choice(MUTATIONS)(content, draw) for _ in range(draw.choice((1, 1, 1, 2, 3))) if content]
    how = f"{name}: {'; '.join(done)}"[:300]
    try:
        content = _sent(content, draw)
    except Exception:  # noqa: BLE001  # Flower's own affair
        return how, "unsent", ""
    start = time.process_time()
    try:
        result = checks.admit(_read(content, job), job, expected, inspect)
        wrong = _unfit(result)
    except Exception as error:  # noqa: BLE001  # what this looks for
        return how, "raised", f"{type(error).__name__}: {error}"[:300]
    if (took := time.process_time() - start) > SECONDS:
        wrong = wrong or f"it took {took:.1f} s of CPU time"
    return how, "failure" if isinstance(result, Failure) else "admitted", wrong


def _read(content: RecordDict, job: Job) -> Result:
    try:
        return codec.decode_result(content, job, engine.REPLY)
    except Malformed as error:
        return Failure(client=job.client, round=job.round, what=str(error), cause=error.cause)


def _sent(content: RecordDict, draw: random.Random) -> RecordDict:
    """Through Flower's encoding; at times a bit falls over on the way. Raises whatever Flower raises."""
    data = bytearray(recorddict_to_proto(content).SerializeToString())
    if draw.random() < 0.1:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    proto = Proto()
    proto.ParseFromString(bytes(data))
    return recorddict_from_proto(proto)


def _unfit(result: Result) -> str:
    """What is wrong with an outcome, beside that it is one."""
    if isinstance(result, Failure):
        is_shown = len(result.what) <= 1000 and result.what.isprintable()
        return "" if is_shown else f"its words cannot be shown: {result.what[:100]!r}"
    row = {"numbers": dict(result.numbers), "examples": result.num_examples}
    try:
        text = ledger.encode(row).decode()
    except (ValueError, UnicodeError) as error:
        return f"its row cannot be written: {error}"
    if "null" in text or len(text) > 100_000 or json.loads(text) != row:
        return "its row says something else"
    payload = result.payload
    tensors = [t for kind in payload.kinds() if kind != "numbers" for t in _tensors(getattr(payload, kind))]
    if not all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point()):
        return "a tensor is not finite"
    return ""


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value.values())


# --- mutations ------------------------------------------------------------------------------------------------------


def drop(content: RecordDict, draw: random.Random) -> str:
    name = draw.choice(list(content) or ["nothing"])
    content.pop(name, None)
    return f"{name} dropped"


def rename(content: RecordDict, draw: random.Random) -> str:
    name, new = draw.choice(list(content)), draw.choice((*NAMES, "payload.samples", "payload.x", "failure", "state"))
    content[new] = content.pop(name)
    return f"{name} is called {new[:20]!r}"


def retype(content: RecordDict, draw: random.Random) -> str:
    name = draw.choice(list(content))
    content[name] = draw.choice((ArrayRecord({}), ConfigRecord({}), MetricRecord({}), ConfigRecord({"a": b"b"})))
    return f"{name} is a {type(content[name]).__name__}"


def extra(content: RecordDict, draw: random.Random) -> str:
    kind = draw.choice(("weights", "class_logits", "samples", "numbers", "label_counts", "generator", "other"))
    value = draw.choice((1.0, 2, [1.0, 2.0]))
    array = ArrayRecord({draw.choice(NAMES): Array(np.ones(3, np.float32))})
    content[f"payload.{kind}"] = MetricRecord({draw.choice(NAMES): value}) if kind == "numbers" else array
    return f"payload.{kind} added"


def array(content: RecordDict, draw: random.Random) -> str:
    """One array: its bytes, header, type or values."""
    places = [(record, name) for record in content.values() if isinstance(record, ArrayRecord) for name in record]
    if not places:
        return "no array"
    record, name = draw.choice(places)
    old = record[name]
    how = draw.choice(("bit", "cut", "long", "header", "dtype", "values", "shape", "swap", "name", "many"))
    data = bytearray(old.data) or bytearray(b"\x93")
    if how == "bit":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "long":
        data += draw.randbytes(draw.choice((1, 4, 4000)))
    elif how == "header":
        at = draw.randrange(min(128, len(data)))
        data[at : at + 4] = draw.choice((b"9999", b"(0,)", b"|O8'", b"-1, ", b"\xff\xff\xff\xff"))
    elif how in ("dtype", "values", "shape"):
        data = bytearray(_other(old, how, draw).data)
    elif how == "name":
        record[draw.choice(NAMES)] = record.pop(name)
        return f"an array is called otherwise than {name}"
    elif how == "many":
        for number in range(draw.choice((10, 20_000))):
            record[f"{name}{number}"] = Array("float32", (0,), "numpy.ndarray", b"")
        return f"many arrays beside {name}"
    else:
        record[name] = record[draw.choice(list(record))]
        return f"{name} is another's"
    record[name] = Array(old.dtype, old.shape, old.stype, bytes(data))
    return f"{how} of {name}"


def _other(old: Array, how: str, draw: random.Random) -> Array:
    try:
        values = codec.decode_tensor(old, "it").numpy()
    except Malformed:
        values = np.ones(3, np.float32)
    if how == "dtype":
        return Array(values.astype(draw.choice(("f8", "f2", "i8", "u1", "?", "c8"))))
    if how == "shape":
        return Array(draw.choice((values[None], values.reshape(-1), values.reshape(-1)[:1], np.zeros((0, 3), "f4"))))
    return Array(np.full_like(values, draw.choice(NUMBERS) if values.dtype.kind == "f" else draw.choice((0, 1, 255))))


def numbers(content: RecordDict, draw: random.Random) -> str:
    places = [(name, record) for name, record in content.items() if isinstance(record, MetricRecord)]
    if not places:
        return "no numbers"
    name, record = draw.choice(places)
    how = draw.choice(("value", "name", "list", "many"))
    if how == "many":
        for number in range(draw.choice((300, 20_000))):
            record[f"n{number}"] = number
    else:
        key = draw.choice(NAMES) if how == "name" else draw.choice([*record, "loss"])
        value = draw.choice(NUMBERS)
        record[key] = [value] * draw.choice((0, 2, 20_000)) if how == "list" else value
    return f"{how} in {name}"


def head(content: RecordDict, draw: random.Random) -> str:
    record = content.get("reply")
    if not isinstance(record, ConfigRecord):
        return "no head"
    key = draw.choice([*record, draw.choice(NAMES)])
    value = draw.choice((*NUMBERS, True, "train", "evaluate", b"x", [1, 2], ["a"] * 1000, draw.choice(TEXTS)))
    record[key] = value
    return f"{key[:20]} = {str(value)[:20]!r}"


def memory(content: RecordDict, draw: random.Random) -> str:
    """What the client says of its memory."""
    plain = content.get("state.plain")
    text = plain.get("json") if isinstance(plain, ConfigRecord) else None
    if isinstance(text, str) and text and draw.random() < 0.6:
        at = draw.randrange(len(text))
        part = draw.choice(("", "1" * 30, "-", '"', "[", "}", "null", "{}", '"\\ud800"', "x"))
        text = text[:at] + part + text[at + draw.choice((0, 1, 5)) :]
    else:
        text = draw.choice(TEXTS)
    content["state.plain"] = ConfigRecord({"json": text})
    return f"state.plain = {text[:40]!r}"


def failure(content: RecordDict, draw: random.Random) -> str:
    """In the place of a reply."""
    said = {key: draw.choice((*TEXTS, 1, [1.5])) for key in ("what", "cause", "detail") if draw.random() < 0.7}
    content["failure"] = ConfigRecord(said)
    return f"failure {str(said)[:40]!r}"


MUTATIONS: tuple[Callable[[RecordDict, random.Random], str], ...] = (
    drop,
    rename,
    retype,
    extra,
    array,
    array,
    array,
    numbers,
    head,
    memory,
    failure,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="these numbers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)  # it warns of each record that is overwritten
    warnings.simplefilter("ignore", RuntimeWarning)  # numbers that do not fit are meant
    start, found, outcomes, bad = time.monotonic(), cases(), Counter[str](), 0
    for number in [int(part) for part in given.only.split(",") if part] or range(given.limit):
        how, outcome, wrong = one(found, given.seed, number)
        outcomes[outcome] += 1
        if wrong:
            bad += 1
            print(f"{number}: {how}: {wrong}", flush=True)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"mutated: {outcomes.total()} messages ({counts}), {bad} wrong, {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
