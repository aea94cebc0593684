"""Streams: keys, not positions."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd import seeds

keys = st.tuples(
    st.integers(0, 2**70), st.sampled_from(["cohort", "batches", "init"]), st.integers(0, 9), st.integers(0, 9)
)


def make(key: tuple[int, str, int, int]) -> seeds.Stream:
    seed, purpose, number, client = key
    return seeds.stream(seed, purpose, round=number, client=client)


@given(keys, keys)
def test_streams_are_equal_exactly_if_seed_purpose_round_and_client_are(one, other):
    assert (make(one) == make(other)) == (one == other)


def test_a_stream_starts_at_its_beginning_each_time():
    stream = seeds.stream(3, "noise")
    assert torch.equal(torch.rand(5, generator=stream.torch()), torch.rand(5, generator=stream.torch()))
    assert stream.numpy().random(5).tolist() == stream.numpy().random(5).tolist()


def test_a_stream_is_the_same_in_every_process_and_version():
    """Golden: a change here changes every result ever recorded."""
    stream = seeds.stream(1, "batches", round=2, client=3)
    assert stream.key.hex()[:16] == "79a059004c21b8d0"
    assert torch.randint(1000, (4,), generator=stream.torch()).tolist() == [140, 469, 125, 137]
    assert stream.numpy().integers(1000, size=4).tolist() == [231, 401, 127, 443]


def test_children_differ_from_their_parent_and_from_each_other():
    stream = seeds.stream(0, "aggregate")
    found = [stream, stream.child("a"), stream.child("b"), stream.child("a", "b"), stream.child("ab"), stream.child(0)]
    found += [stream.child("0"), stream.child("a").child("b")]
    assert len({item.key for item in found}) == len(found)


def test_a_child_depends_on_its_parent():
    assert seeds.stream(0, "x").child("a") != seeds.stream(1, "x").child("a")


def test_nothing_reads_or_moves_the_global_generators():
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].tolist()
    stream = seeds.stream(0, "x")
    first = torch.rand(3, generator=stream.torch())
    stream.numpy().random(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == legacy
    with torch.random.fork_rng():
        torch.rand(1)
        assert torch.equal(torch.rand(3, generator=seeds.stream(0, "x").torch()), first)
