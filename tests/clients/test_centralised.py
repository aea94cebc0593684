"""The pooled student's client half: its budget (docs/strategies/centralised.md, equations 1 and 2)."""

from dataclasses import replace

import pytest
import tiny

from clients import centralised
from clients.centralised import Centralised
from clients.supervised import Supervised
from fedkd.config import TrainConfig
from fedkd.payload import Payload


def job_for(problem, cohort):
    weights = problem.initial().weights
    return tiny.job(problem, payload=Payload(weights=weights, numbers={"budget": float(cohort)}))


def test_it_takes_as_many_steps_as_the_cohort_would(problem):
    long = replace(problem, train=replace(tiny.TRAIN, steps=3 * 5))
    expected = tiny.fit(Supervised(), tiny.job(problem), tiny.site(Supervised(), long))
    found = tiny.fit(Centralised(), job_for(problem, 5), tiny.site(Centralised(), problem))
    tiny.assert_same_weights(found, expected)
    assert (found.state.epoch, found.state.position) == (expected.state.epoch, expected.state.position)


def test_drawing_in_portions_changes_no_weight(problem, monkeypatch):
    """Momentum and the order of samples go on from one portion to the next."""
    problem = replace(problem, train=replace(tiny.TRAIN, momentum=0.9))
    site = tiny.site(Centralised(), problem)
    whole = tiny.fit(Centralised(), job_for(problem, 4), site)
    monkeypatch.setattr(centralised, "STEPS_DRAWN", 5)
    parts = tiny.fit(Centralised(), job_for(problem, 4), site)
    tiny.assert_same_weights(parts, whole)
    tiny.assert_same(tiny.canonical(parts.state), tiny.canonical(whole.state))
    assert parts.numbers["ce"] == pytest.approx(whole.numbers["ce"])


@pytest.mark.parametrize(
    ("train", "budget", "samples", "clients", "expected"),
    [
        (TrainConfig(steps=20), 10, 600, 20, 200),
        (TrainConfig(steps=None, epochs=2, batch=10), 10, 1000, 20, 100),  # half of the clients: half of two passes
        (TrainConfig(steps=None, epochs=2, batch=10), 20, 1000, 20, 200),
        (TrainConfig(steps=None, epochs=3, batch=4), 1, 30, 1, 24),  # as FedAvg's client: passes end with short batches
        (TrainConfig(steps=None, epochs=1, batch=100), 1, 50, 100, 1),
    ],
)
def test_epochs_are_those_of_the_cohorts_share_of_the_data(train, budget, samples, clients, expected):
    assert centralised.num_steps(train, budget, samples, clients) == expected
