import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from simulations.engines.work_queues import CHUNK_SECONDS, Costs, QueueEntry, WorkQueues


@pytest.fixture
def entries(problem):
    return [QueueEntry(tiny.job(problem, client=client), key=0) for client in range(8)]


def clients(chunk):
    return [entry.job.client for entry in chunk]


def test_jobs_of_unknown_cost_travel_alone(entries):
    queues = WorkQueues(entries, [0, 1], {}, Costs())
    assert clients(queues.take(0)) == [0]
    assert clients(queues.take(1)) == [1]


def test_short_jobs_fill_a_chunk(entries):
    queues = WorkQueues(entries * 10, [0], {}, Costs({"train": CHUNK_SECONDS / 4}))
    assert len(queues.take(0)) == 4


def test_a_round_has_at_least_four_chunks_a_worker(entries):
    queues = WorkQueues(entries, [0, 1], {}, Costs({"train": 1e-4}))
    assert [len(queues.take(0)) for _ in range(4)] == [1, 1, 1, 1]


@given(st.floats(1e-6, 1e-3))
def test_rounding_puts_no_two_jobs_where_one_fills_a_chunk(seconds):
    entries = [QueueEntry(tiny.job(tiny.problem(), client=client), key=0) for client in range(8)]
    at_one = dict.fromkeys([entry.cache_key for entry in entries], 0)
    queues = WorkQueues(entries, [0, 1], at_one, Costs({"train": seconds}))
    assert [len(queues.take(0)) for _ in range(8)] == [1] * 8


def test_clients_go_home(entries):
    queues = WorkQueues(entries, [0, 1], {(False, 0): 1, (False, 1): 1}, Costs())
    assert clients(queues.take(1)) == [0]
    assert clients(queues.take(1)) == [1]


def test_a_home_that_is_gone_is_forgotten(entries):
    queues = WorkQueues(entries, [0, 1], dict.fromkeys([entry.cache_key for entry in entries], 7), Costs())
    assert clients(queues.take(0)) == [0]
    assert clients(queues.take(1)) == [1]


def test_who_has_nothing_left_steals_from_the_far_end(entries):
    queues = WorkQueues(entries, [0, 1], dict.fromkeys([entry.cache_key for entry in entries], 0), Costs())
    assert clients(queues.take(1)) == [7]
    assert clients(queues.take(0)) == [0]
    assert queues.stolen == 1


def test_suspects_travel_alone(entries):
    queues = WorkQueues(entries, [0], {}, Costs({"train": CHUNK_SECONDS / 100}))
    queues = WorkQueues(entries * 50, [0], {}, Costs({"train": CHUNK_SECONDS / 100}))
    chunk = queues.take(0)
    assert len(chunk) > 2
    suspects = [QueueEntry(entry.job, 0, suspicions=1) for entry in chunk[:2]]
    queues.put_back(suspects)
    assert [queues.take(0), queues.take(0)] == [[suspects[0]], [suspects[1]]]
    assert len(queues.take(0)) > 2


def test_every_part_is_taken_once(entries):
    queues = WorkQueues(entries, [0, 1, 2], {}, Costs({"train": CHUNK_SECONDS / 2}))
    taken = []
    while chunk := queues.take(len(taken) % 3):
        taken += clients(chunk)
    assert sorted(taken) == list(range(8))
    assert len(queues) == 0


def test_costs_move_half_way_to_the_new_duration(entries):
    costs = Costs()
    costs.learn(entries[0], 0.4)
    assert costs.of(entries[1]) == pytest.approx(0.4)
    costs.learn(entries[0], 0.2)
    assert costs.of(entries[1]) == pytest.approx(0.3)
