"""DS-FL's server half: golden numbers and invariants (docs/strategies/dsfl.md)."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from clients import dsfl as client_half
from fedkd import seeds
from fedkd.border.checks import Refused
from fedkd.data.samples import Proxy
from fedkd.maths import losses
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from fedkd.training import forward
from strategies import dsfl
from strategies.dsfl import DSFL

STREAM = seeds.stream(0, "test")
PUBLIC = Proxy("tiny", tiny.samples(12, seed=5), True, 12345)
UNLABELLED = replace(PUBLIC, is_labelled=False, samples=replace(PUBLIC.samples, y=torch.full((12,), -1)))
MEAN = torch.tensor([[0.4, 0.35, 0.25]], dtype=torch.float64)

laws = st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=1, max_size=6)


def strategy(**changes):
    return DSFL(DSFL.Config(**changes))


def start(proxy=PUBLIC):
    return strategy().init(tiny.problem(proxy=proxy), STREAM)


def reply(client, probs):
    return tiny.reply(client, payload=Payload(probe_logits=probs))


def said(seed):
    return (3 * torch.randn(12, 3, generator=seeds.stream(seed, "said").torch())).softmax(1)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.1, (0.546549, 0.331499, 0.121952)), (1.0, (0.355627, 0.338283, 0.306091))]
)
def test_entropy_reduction_of_the_example(temperature, expected):
    assert_close(dsfl.sharpen(MEAN, temperature)[0].tolist(), list(expected), atol=1e-6, rtol=0)


def test_entropies_of_the_example():
    assert dsfl.entropy(MEAN) == pytest.approx(1.0805, abs=1e-4)
    assert dsfl.entropy(dsfl.sharpen(MEAN, 0.1)) == pytest.approx(0.9528, abs=1e-4)


def test_uniform_rows_stay_and_certain_rows_nearly_do():
    uniform, certain = torch.full((1, 10), 0.1), torch.eye(10)[:1]
    assert_close(dsfl.sharpen(uniform, 0.1), uniform)
    assert float(dsfl.sharpen(certain, 0.1).max()) == pytest.approx(1 / (1 + 9 * math.exp(-10)), abs=1e-6)
    assert dsfl.entropy(certain) == 0


@given(laws, st.floats(0.01, 5))
def test_rows_sum_to_one_and_keep_their_order(rows, temperature):
    probs = torch.tensor(rows, dtype=torch.float64)
    probs = probs / probs.sum(1, keepdim=True)
    found = dsfl.sharpen(probs, temperature)
    assert_close(found.sum(1), torch.ones(len(rows), dtype=torch.float64))
    assert (found.gather(1, probs.argmax(1, keepdim=True))[:, 0] == found.max(1).values).all()


def test_clients_may_be_exchanged():
    probs = [said(k) for k in range(3)]
    one, _ = strategy(global_epochs=0).aggregate(start(), [reply(k, p) for k, p in enumerate(probs)], STREAM)
    two, _ = strategy(global_epochs=0).aggregate(start(), [reply(k, p) for k, p in enumerate(probs[::-1])], STREAM)
    assert_close(one.target, two.target)


def test_simple_aggregation_is_the_plain_mean():
    state, findings = strategy(aggregation="sa").aggregate(start(), [reply(0, said(0)), reply(1, said(1))], STREAM)
    assert_close(state.target, (said(0) + said(1)) / 2)
    assert findings["entropy_after"] == findings["entropy_before"]


def test_sharpening_lowers_the_entropy_and_the_ledger_says_so():
    _, findings = strategy().aggregate(start(), [reply(k, said(k)) for k in range(3)], STREAM)
    assert findings["entropy_after"] < findings["entropy_before"]
    assert {"global", "teacher_accuracy", "coverage"} <= set(findings)


def test_the_global_student_learns_the_target_and_the_old_state_does_not_change():
    old = start()
    before = {name: value.clone() for name, value in old.weights.items()}
    state, _ = strategy(global_epochs=20, global_lr=0.1).aggregate(old, [reply(0, said(0))], STREAM)
    x, _ = PUBLIC.samples.take(torch.arange(12))
    gaps = [
        float(losses.cross_entropy(forward.logits(old.problem.initial().load(w), x), state.target))
        for w in (before, state.weights)
    ]
    assert gaps[1] < 0.9 * gaps[0]
    tiny.assert_same_weights(old.weights, before)
    assert not any(value.requires_grad for value in state.weights.values())


def test_no_epochs_leave_the_global_student_alone():
    old = start()
    state, _ = strategy(global_epochs=0).aggregate(old, [reply(0, said(0))], STREAM)
    tiny.assert_same_weights(state.weights, old.weights)


def test_the_global_student_is_served_to_all_and_clients_have_their_own():
    assert set(strategy().evaluation_payload(start(), None).weights) == set(tiny.problem().initial().weights)
    assert strategy().evaluation_payload(start(), 0) is None


@pytest.mark.parametrize("spoilt", [said(0) * 2, said(0) - 0.5, torch.zeros(12, 3)])
def test_rows_that_are_no_probabilities_are_refused(spoilt):
    with pytest.raises(Refused, match="no probabilities"):
        strategy().inspect(start(), tiny.job(tiny.problem()), reply(0, spoilt))


def test_the_wrong_number_of_rows_is_refused():
    with pytest.raises(Refused, match="rows"):
        strategy().inspect(start(), tiny.job(tiny.problem()), reply(0, said(0)[:5]))


def test_first_they_are_asked_and_then_they_are_told():
    state, _ = strategy().aggregate(start(), [reply(0, said(0))], STREAM)
    assert strategy().plan(state, Cohort((0,), 2, 0))[0].kinds() == {"numbers"}
    assert strategy().plan(state, Cohort((0,), 2, 1))[0].kinds() == {"probe_logits", "numbers"}
    assert strategy().expected_kinds(Cohort((0,), 2, 1)) == frozenset()


@pytest.mark.parametrize("statistics", ["average", "local"])
def test_rounds_run_on_unlabelled_images_and_the_global_students_statistics_are_its_own(statistics):
    problem = tiny.problem(tiny.normed, proxy=UNLABELLED, statistics=statistics)
    site = tiny.site(client_half.DSFL(), problem)
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(strategy(), site), engine, 2)
    assert set(played[-1].row["terms"]) == {"ce", "distil"}
    assert "global" in played[-1].row["accuracy"]
    pooled = [job for job in engine.jobs if job.task == "evaluate_pooled"][-1]
    tiny.assert_same_weights(pooled.payload.weights, played[-1].state.server.weights)
