"""Payloads: kinds, bytes, identity."""

import dataclasses

import pytest
import torch

from fedkd.payload import KINDS, Payload


def full() -> Payload:
    return Payload(
        weights={"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)},
        reference={"a": torch.zeros(2, 3)},
        generator={"g": torch.zeros(5)},
        class_logits=torch.zeros(3, 3),
        prototypes=torch.zeros(3, 4),
        label_counts=torch.zeros(3, dtype=torch.int64),
        probe_logits=torch.zeros(7, 3),
        samples={"x": torch.zeros(2, 8, dtype=torch.uint8), "y": torch.zeros(2, dtype=torch.int64)},
        numbers={"lr": 0.1, "step": 3},
    )


def test_bytes_are_elements_times_their_size_by_kind():
    assert full().num_bytes() == {
        "weights": 6 * 4 + 4 * 8,
        "reference": 6 * 4,
        "generator": 20,
        "class_logits": 36,
        "prototypes": 48,
        "label_counts": 24,
        "probe_logits": 84,
        "samples": 16 + 16,
        "numbers": 16,
    }


def test_every_kind_has_a_byte_count():
    assert set(full().num_bytes()) == full().kinds() == set(KINDS)


def test_a_number_that_was_not_sent_is_zero():
    assert full().number("lr") == 0.1
    assert full().number("steps") == Payload().number("lr") == 0


def test_an_empty_payload_has_no_kinds_and_no_bytes():
    assert Payload().kinds() == frozenset()
    assert not Payload().num_bytes()


def test_empty_knowledge_is_knowledge():
    assert Payload(weights={}).kinds() == {"weights"}
    assert Payload(weights={}).num_bytes() == {"weights": 0}


def test_a_view_counts_its_own_elements_only():
    assert Payload(weights={"row": torch.zeros(10, 10)[0]}).num_bytes() == {"weights": 40}


def test_payloads_are_equal_only_if_they_are_one_object():
    weights = {"a": torch.zeros(2)}
    one, other = Payload(weights=weights), Payload(weights=weights)
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2


def test_a_payload_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Payload().weights = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        full().num_bytes()["weights"] = 0  # type: ignore[index]
