"""Which batches a participation sees, and at which learning rate."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd.config import TrainConfig
from fedkd.engine import ClientState, Job
from fedkd.payload import Payload
from fedkd.training import optimisers, sample_order


def drawing_job(client: int = 0, **state: int) -> Job:
    return Job(task="train", client=client, round=1, payload=Payload(), state=ClientState(**state))


def draw(samples: int, *, seed: int = 0, client: int = 0, config: TrainConfig | None = None, **state: int):
    job = drawing_job(client, **state)
    return sample_order.draw_batches(seed, config or TrainConfig(batch=4, steps=3), job, samples)


# Batches
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12))
def test_a_pass_holds_every_sample_once_and_ends_with_a_short_batch(samples, batch, passes):
    batches, epoch, position = draw(samples, config=TrainConfig(batch=batch, steps=None, epochs=passes))
    per_pass = -(-samples // batch)
    assert (len(batches), epoch, position) == (passes * per_pass, passes, 0)
    for number in range(passes):
        mine = batches[number * per_pass : (number + 1) * per_pass]
        assert sorted(torch.cat(mine).tolist()) == list(range(samples))
        assert [len(part) for part in mine[:-1]] == [batch] * (per_pass - 1)
        assert len(mine[-1]) == samples - batch * (per_pass - 1)


@given(st.integers(1, 40), st.integers(1, 9), st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_participations_go_on_where_the_last_one_stopped(samples, batch, participations):
    """In how many participations steps are taken changes none of them."""
    whole, *end = draw(samples, config=TrainConfig(batch=batch, steps=sum(participations)))
    parts, epoch, position = [], 0, 0
    for steps in participations:
        config = TrainConfig(batch=batch, steps=steps)
        batches, epoch, position = draw(samples, config=config, epoch=epoch, position=position)
        parts += batches
    assert [part.tolist() for part in parts] == [part.tolist() for part in whole]
    assert [epoch, position] == end


def test_whole_passes_begin_anew_where_steps_stopped_in_the_middle():
    config = TrainConfig(batch=4, steps=None, epochs=1)
    batches, epoch, position = draw(10, config=config, epoch=2, position=4)
    assert sorted(torch.cat(batches).tolist()) == list(range(10))
    assert (epoch, position) == (4, 0)
    assert torch.equal(torch.cat(batches), torch.cat(draw(10, config=config, epoch=3)[0]))


def test_orders_differ_between_passes_clients_and_seeds():
    config = TrainConfig(batch=50, steps=1)
    base = draw(50, config=config)[0][0].tolist()
    for other in (draw(50, config=config, epoch=1), draw(50, config=config, client=1), draw(50, config=config, seed=1)):
        assert other[0][0].tolist() != base


def test_the_round_does_not_change_the_batches():
    """All strategies meet the same batches, whenever a client takes part."""
    config, job = TrainConfig(batch=4, steps=3), drawing_job()
    one, other = (sample_order.draw_batches(0, config, replace(job, round=t), 10)[0] for t in (1, 7))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Learning rate
def rate(round: int, last_round: int = 0, **config: object) -> float:
    train = TrainConfig(**{"lr": 0.01, "lr_decay": 0.99, **config})  # type: ignore[arg-type]
    problem = tiny.problem(train=train, rounds=10)
    return optimisers.learning_rate(problem, replace(drawing_job(last_round=last_round), round=round))


def test_learning_rate_decays_from_the_second_round_on():
    assert rate(1) == 0.01
    assert rate(2) == pytest.approx(0.0099)
    assert rate(101) == pytest.approx(0.01 * 0.99**100)


def test_clock_of_participation_reads_the_clients_last_round():
    """FedGen's code: after round t = 199 a client's rate is 0.0013533; its first is 0.01 whenever."""
    at = {"lr_clock": "participation"}
    assert rate(50, last_round=0, **at) == 0.01
    assert rate(50, last_round=1, **at) == 0.01
    assert rate(50, last_round=2, **at) == pytest.approx(0.0099)
    assert rate(201, last_round=200, **at) == pytest.approx(0.0013533, abs=5e-8)


def test_without_decay_the_rate_never_changes():
    assert rate(500, lr=0.3, lr_decay=1.0) == 0.3
    assert rate(500, lr=0.3, schedule="constant") == 0.3


def test_steps_drop_the_rate_after_so_many_rounds():
    rates = [rate(t, lr=1.0, schedule="step", lr_decay=0.5, lr_step=3) for t in range(1, 8)]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_cosine_starts_at_the_rate_is_half_of_it_in_the_middle_and_ends_above_0():
    rates = [rate(t, lr=1.0, schedule="cosine", lr_decay=1.0) for t in range(1, 11)]
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.5)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)


@pytest.mark.parametrize("schedule", ["exponential", "constant", "cosine", "step"])
def test_the_rate_rises_in_equal_steps_and_the_schedule_starts_then(schedule):
    at = {"lr": 1.0, "schedule": schedule, "lr_decay": 0.5, "lr_step": 1, "warmup": 3}
    assert [rate(t, **at) for t in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    second = {"constant": 1.0, "cosine": (1 + math.cos(math.pi / 7)) / 2}.get(schedule, 0.5)
    assert rate(5, **at) == pytest.approx(second)
    assert rate(8, last_round=5, lr_clock="participation", **at) == rate(5, **at)
