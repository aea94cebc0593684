import pytest
import tiny

from simulations.engines.work_queues import CHUNK_SECONDS, Costs, Lanes, Part


@pytest.fixture
def parts(problem):
    return [Part(tiny.job(problem, client=client), key=0) for client in range(8)]


def clients(chunk):
    return [part.job.client for part in chunk]


def test_jobs_of_unknown_cost_travel_alone(parts):
    lanes = Lanes(parts, [0, 1], {}, Costs())
    assert clients(lanes.take(0)) == [0]
    assert clients(lanes.take(1)) == [1]


def test_short_jobs_fill_a_chunk(parts):
    lanes = Lanes(parts * 10, [0], {}, Costs({"train": CHUNK_SECONDS / 4}))
    assert len(lanes.take(0)) == 4


def test_a_round_has_at_least_four_chunks_a_worker(parts):
    lanes = Lanes(parts, [0, 1], {}, Costs({"train": 1e-4}))
    assert [len(lanes.take(0)) for _ in range(4)] == [1, 1, 1, 1]


def test_clients_go_home(parts):
    lanes = Lanes(parts, [0, 1], {(False, 0): 1, (False, 1): 1}, Costs())
    assert clients(lanes.take(1)) == [0]
    assert clients(lanes.take(1)) == [1]


def test_a_home_that_is_gone_is_forgotten(parts):
    lanes = Lanes(parts, [0, 1], dict.fromkeys([part.resident for part in parts], 7), Costs())
    assert clients(lanes.take(0)) == [0]
    assert clients(lanes.take(1)) == [1]


def test_who_has_nothing_left_steals_from_the_far_end(parts):
    lanes = Lanes(parts, [0, 1], dict.fromkeys([part.resident for part in parts], 0), Costs())
    assert clients(lanes.take(1)) == [7]
    assert clients(lanes.take(0)) == [0]
    assert lanes.stolen == 1


def test_suspects_travel_alone(parts):
    lanes = Lanes(parts, [0], {}, Costs({"train": CHUNK_SECONDS / 100}))
    lanes = Lanes(parts * 50, [0], {}, Costs({"train": CHUNK_SECONDS / 100}))
    chunk = lanes.take(0)
    assert len(chunk) > 2
    suspects = [Part(part.job, 0, suspicions=1) for part in chunk[:2]]
    lanes.put_back(suspects)
    assert [lanes.take(0), lanes.take(0)] == [[suspects[0]], [suspects[1]]]
    assert len(lanes.take(0)) > 2


def test_every_part_is_taken_once(parts):
    lanes = Lanes(parts, [0, 1, 2], {}, Costs({"train": CHUNK_SECONDS / 2}))
    taken = []
    while chunk := lanes.take(len(taken) % 3):
        taken += clients(chunk)
    assert sorted(taken) == list(range(8))
    assert len(lanes) == 0


def test_costs_move_half_way_to_the_new_duration(parts):
    costs = Costs()
    costs.learn(parts[0], 0.4)
    assert costs.of(parts[1]) == pytest.approx(0.4)
    costs.learn(parts[0], 0.2)
    assert costs.of(parts[1]) == pytest.approx(0.3)
