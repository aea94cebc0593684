"""Payloads, states and results as Flower records: exact both ways, and strict about what comes in."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedkd import engine
from fedkd.engine import ClientState, Failure, Reply
from fedkd.payload import Payload
from simulations.flower import codec
from simulations.flower.codec import Malformed
from simulations.flower.message_limits import Limits

NAN_PAYLOAD = torch.tensor([0x7FC00001, -1, 0], dtype=torch.int32).view(torch.float32)  # NaNs differ in their bits
PAYLOAD = Payload(
    weights={"a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": NAN_PAYLOAD},
    generator={"hidden.weight": torch.zeros(2, 0)},
    class_logits=torch.full((3, 3), -0.0),
    prototypes=torch.arange(12.0).view(3, 4).t(),  # not contiguous
    label_counts=torch.tensor([2**62, 0, 1]),
    probe_logits=torch.ones(5, 3),
    samples={"x": torch.arange(24, dtype=torch.uint8).view(2, 3, 4), "y": torch.tensor([1, 2])},
    numbers={"lr": 0.1, "step": 7},
)
STATE = ClientState(
    kept={"norm.running_mean": torch.ones(2)},
    memory={
        "momentum": {"a/b": torch.zeros(1), "a": {"b": torch.ones(1, dtype=torch.float64)}},
        "order": torch.tensor([], dtype=torch.int64),
        "label": "läuft",
        "rate": float("inf"),
        "count": 3,
        "empty": {},
    },
    epoch=2,
    position=5,
    last_round=4,
)
JOB = engine.Job(task="train", client=3, round=9, exchange=1, payload=PAYLOAD, state=STATE)
REPLY = Reply(
    client=3,
    round=9,
    exchange=1,
    payload=PAYLOAD,
    state=STATE,
    num_examples=17,
    numbers={"ce": 0.25},
    probe=torch.tensor([1, 0], dtype=torch.uint8),
    seconds=0.5,
)


def over_the_wire(content: RecordDict) -> RecordDict:
    """As a SuperLink stores and hands it on."""

    def rebuild(item: object) -> object:
        children = item.children or {}
        return type(item).inflate(item.deflate(), {key: rebuild(child) for key, child in children.items()})

    return rebuild(content)


def test_jobs_come_back_to_the_last_bit():
    back = codec.decode_job(over_the_wire(codec.encode_job(JOB)))
    assert tiny.canonical(back) == tiny.canonical(JOB)


def test_replies_come_back_to_the_last_bit():
    back = codec.decode_result(over_the_wire(codec.encode_result(REPLY)), JOB)
    assert tiny.canonical(back) == tiny.canonical(REPLY)


def test_absent_and_empty_kinds_stay_different():
    for payload in (Payload(), Payload(weights={}), Payload(numbers={})):
        back = codec.decode_payload(over_the_wire(RecordDict(codec.encode_payload(payload))))
        assert tiny.canonical(back) == tiny.canonical(payload)


def test_failures_come_back_as_those_of_the_job_that_was_asked():
    told = Failure(client=99, round=1, what="ValueError: no", cause="raised", detail="Traceback ...")
    back = codec.decode_result(over_the_wire(codec.encode_result(told)), JOB)
    assert back == Failure(client=3, round=9, exchange=1, what="ValueError: no", cause="raised", detail="Traceback ...")


@given(
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]),
    st.lists(st.integers(0, 4), max_size=5),
    st.integers(0, 2**31),
)
def test_tensors_of_any_shape_and_type_come_back(dtype, shape, seed):
    draw = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 256, shape, generator=draw).to(dtype)
    back = codec.decode_tensor(codec.encode_tensor(tensor), "x")
    assert tiny.canonical(back) == tiny.canonical(tensor)
    back.zero_()  # memory of its own, that may be written to


def test_other_peoples_fortran_order_is_read():
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert codec.decode_tensor(Array(values), "x").tolist() == values.tolist()


def test_bytes_of_a_payload_and_of_its_records():
    """A record is what the formula says, 128 bytes of header a tensor, and the names of entries."""
    records = codec.encode_payload(PAYLOAD)
    for kind, size in PAYLOAD.num_bytes().items():
        record = records[f"payload.{kind}"]
        tensors = len(record) if isinstance(record, ArrayRecord) else 0
        names = sum(len(name) for name in record)
        assert record.count_bytes() == size + 128 * tensors + names, kind


def test_records_can_always_be_counted():
    """Flower's counter raises on empty text and lists."""
    for result in (REPLY, replace(REPLY, state=ClientState(), numbers={}), engine.failed(JOB, "gone", "raised")):
        for record in codec.encode_result(result).values():
            assert record.count_bytes() >= 0


def npy(header: str, body: bytes) -> Array:
    text = header.ljust(117).encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body
    return Array("float32", (1,), "numpy.ndarray", data)


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (npy(F4 % "(1000000000, 1000)", b"1234"), "size"),  # would be 4 TB
        (npy(F4 % "(2,)", b"1234"), "size"),
        (npy(F4 % "()", b"12345678"), "size"),
        (npy(F4 % "(-1, -1)", b"1234"), "dtype"),
        (npy(F4 % ("(" + "1, " * 70 + ")"), b"1234"), "shape"),
        (npy(F4 % "(0, 99999999999999999999)", b""), "shape"),
        (npy(F4.replace("<f4", "|O8") % "(1,)", b"12345678"), "dtype"),
        (npy(F4.replace("<f4", ">f4") % "(1,)", b"1234"), "dtype"),
        (npy(F4.replace("<f4", "<c8") % "(1,)", b"12345678"), "dtype"),
        (npy("{'descr': __import__('os').getcwd()}", b""), "dtype"),
        (Array("float32", (1,), "numpy.ndarray", b""), "dtype"),
        (Array("float32", (1,), "numpy.ndarray", b"\x80\x04K\x01."), "dtype"),  # a pickle
        (Array("float32", (1,), "numpy.ndarray", b"\x93NUMPY\x02\x00" + b"\xff" * 40), "dtype"),
    ],
)
def test_arrays_whose_bytes_are_not_what_they_say_are_refused(array, cause):
    with pytest.raises(Malformed) as caught:
        codec.decode_tensor(array, "weights: 'a'")
    assert caught.value.cause == cause
    assert "weights: 'a'" in str(caught.value)


def test_what_an_array_claims_beside_its_bytes_does_not_count():
    buffer = io.BytesIO()
    np.save(buffer, np.ones(10, np.float32))
    lying = Array("float64", (10**9,), "numpy.ndarray", buffer.getvalue())
    assert tiny.canonical(codec.decode_tensor(lying, "x")) == tiny.canonical(torch.ones(10))


def without(name: str) -> Callable[[RecordDict], None]:
    return lambda content: content.pop(name)


def with_record(name: str, record: object) -> Callable[[RecordDict], None]:
    return lambda content: content.__setitem__(name, record)


def head(**changes: object) -> ConfigRecord:
    whole = {"task": "train", "client": 3, "round": 9, "exchange": 1, "num_examples": 17, "seconds": 0.5}
    return ConfigRecord({**whole, **changes})


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (without("reply"), "kinds"),
        (without("state"), "kinds"),
        (without("reply.numbers"), "kinds"),
        (with_record("reply", MetricRecord({"client": 3})), "kinds"),
        (with_record("reply", head(client=2)), "stale"),  # in another's name
        (with_record("reply", head(round=8)), "stale"),
        (with_record("reply", head(num_examples=True)), "dtype"),
        (with_record("reply", head(num_examples=[17])), "dtype"),
        (with_record("reply", head(extra=1)), "names"),
        (with_record("reply.numbers", MetricRecord({"ce": [0.1, 0.2]})), "dtype"),
        (with_record("reply.probe", ArrayRecord({"other": Array(np.zeros(2, np.uint8))})), "names"),
        (with_record("payload.secrets", ArrayRecord({})), "kinds"),
        (with_record("payload.weights", MetricRecord({"a": 1.0})), "kinds"),
        (with_record("payload.label_counts", ArrayRecord({})), "names"),
        (with_record("state.plain", ConfigRecord({"json": "{"})), "names"),
        (with_record("state.plain", ConfigRecord({"json": "[" * 100_000})), "names"),
        (with_record("state.plain", ConfigRecord({"json": "3"})), "dtype"),
        (with_record("state.plain", ConfigRecord({"json": '{"fields": {"kept": 1}}'})), "names"),
        (with_record("state.plain", ConfigRecord({"json": '{"fields": 7}'})), "names"),
        (with_record("state", ArrayRecord({})), "names"),
    ],
)
def test_results_that_do_not_fit_are_refused_with_a_cause(spoil, cause):
    content = codec.encode_result(REPLY)
    spoil(content)
    with pytest.raises(Malformed) as caught:
        codec.decode_result(content, JOB)
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    ("name", "record", "limits"),
    [
        ("state.plain", ConfigRecord({"json": " " * 5000}), Limits(text=4000)),
        ("state.plain", ConfigRecord({"json": "{}", "b": b"1" * 5000}), Limits(size=4000)),
        ("more", ConfigRecord({"a" * 5000: 1}), Limits(text=4000)),
        ("m" * 5000, ConfigRecord({}), Limits(text=4000)),
        ("more", ConfigRecord({"a": ["b" * 50] * 100}), Limits(text=4000)),
        ("more", ConfigRecord({"a": [1.5] * 500}), Limits(size=4000)),
        ("more", ConfigRecord({"a": [1.5] * 500}), Limits(entries=400)),
        ("payload.numbers", MetricRecord({f"n{k}": k for k in range(500)}), Limits(entries=400)),
        ("payload.samples", ArrayRecord({f"n{k}": Array(np.zeros(0)) for k in range(500)}), Limits(entries=400)),
        ("payload.samples", ArrayRecord({"x": Array(np.zeros(500))}), Limits(size=4000)),
        ("payload.samples", ArrayRecord({"x": Array("f" * 5000, (1,), "npy", b"")}), Limits(text=4000)),
    ],
)
def test_everything_in_a_message_counts_and_is_limited_before_it_is_decoded(name, record, limits, monkeypatch):
    content = RecordDict({**codec.encode_result(replace(REPLY, payload=Payload())), name: record})
    monkeypatch.setattr(codec, "decode_tensor", lambda array, name: pytest.fail("decoded"))
    monkeypatch.setattr(codec.strict_json, "parse", lambda text: pytest.fail("decoded"))
    for decode in (
        lambda: codec.decode_result(content, JOB, limits),
        lambda: codec.decode_job(content, limits),
    ):
        with pytest.raises(Malformed, match=r"at most [\d,]+ are read") as caught:
            decode()
        assert caught.value.cause == "size"


def test_more_numbers_than_a_reply_may_carry_are_not_copied():
    content = codec.encode_result(REPLY)
    content["payload.numbers"] = MetricRecord({f"n{k}": k for k in range(257)})
    with pytest.raises(Malformed, match="257 numbers, at most 256") as caught:
        codec.decode_result(content, JOB)
    assert caught.value.cause == "size"


@pytest.mark.parametrize("count", ["-1", "1" + "0" * 30])
def test_counts_of_a_memory_fit_in_64_bits(count):
    content = codec.encode_result(replace(REPLY, state=ClientState(epoch=7)))
    text = content["state.plain"]["json"]
    assert isinstance(text, str)
    content["state.plain"] = ConfigRecord({"json": text.replace("7", count)})
    with pytest.raises(Malformed, match="not a client's memory"):
        codec.decode_result(content, JOB)


def test_what_a_client_says_of_its_failure_is_bounded_and_its_cause_is_one_it_can_know():
    told = ConfigRecord({"what": "x" * 10_000, "cause": "late", "detail": "y" * 10**6})
    back = codec.decode_result(RecordDict({"failure": told}), JOB)
    assert (back.cause, len(back.what) < 1000, len(back.detail) < 100_000) == ("raised", True, True)
    back = codec.decode_result(RecordDict({"failure": ConfigRecord({"what": [1, 2]})}), JOB)
    assert back.what == "the client failed without giving a reason"
