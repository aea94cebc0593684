"""Problem: what travels, what stays, and that every student starts alike."""

import pickle

import pytest
import tiny
import torch

from fedkd import seeds


def test_every_student_of_a_run_starts_from_the_same_weights(problem):
    tiny.assert_same_weights(problem.initial(), problem.initial())
    tiny.assert_same_weights(problem.initial(), pickle.loads(pickle.dumps(problem)).initial())  # noqa: S301


def test_another_seed_gives_another_student(problem):
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(problem.initial(), tiny.problem(seed=1).initial())


def test_a_students_weights_come_from_the_stream_alone(problem):
    state = torch.get_rng_state()
    stream = seeds.stream(5, "x")
    tiny.assert_same_weights(problem.student(stream), problem.student(stream))
    assert torch.equal(torch.get_rng_state(), state)


def test_latent_width_is_the_input_of_the_head(problem):
    assert problem.latent == tiny.LATENT == problem.initial().latent_width


def test_statistics_are_named_under_batch_norm_only(problem):
    assert problem.statistic_names == ()
    assert tiny.problem(tiny.normed).statistic_names == ("conv.1.running_mean", "conv.1.running_var")


def test_averaged_statistics_travel_and_local_ones_stay():
    weights = tiny.problem(tiny.normed).initial().weights
    assert set(tiny.problem(tiny.normed).shared(weights)) == set(weights)
    local = tiny.problem(tiny.normed, statistics="local")
    assert set(weights) - set(local.shared(weights)) == set(local.statistic_names)


@pytest.mark.parametrize("statistics", ["average", "local"])
def test_of_a_shared_head_only_the_head_travels(statistics):
    problem = tiny.problem(tiny.normed, statistics=statistics)
    assert list(problem.shared(problem.initial().weights, "head")) == ["head.weight", "head.bias"]
