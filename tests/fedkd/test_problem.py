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


# Students that differ


def mixed(**changes):
    """Clients 0 and 2 have a normalised student, client 1 a plain one; a server's is plain."""
    mixture = {"plain": tiny.plain, "normed": tiny.normed}
    return tiny.problem(mixture=mixture, assigned=("normed", "plain", "normed"), **changes)


def test_clients_are_mixed_if_their_architectures_differ():
    assert mixed().is_mixed
    assert not tiny.problem().is_mixed
    alike = tiny.problem(mixture={"normed": tiny.normed}, assigned=("normed",) * 3)
    assert not alike.is_mixed
    assert [each.architectures for each in (mixed(), alike, tiny.problem())] == [["normed", "plain"], ["normed"], [""]]


def test_the_problem_of_a_client_is_as_if_all_had_its_student():
    problem = mixed(statistics="local")
    assert problem.of(0) is problem.of(2) is problem.alike("normed")
    assert problem.of(0).statistic_names == ("conv.1.running_mean", "conv.1.running_var")
    assert problem.of(1).statistic_names == problem.of(None).statistic_names == ()
    assert not problem.of(0).is_mixed
    assert set(problem.of(0).shared(problem.initial(0).weights)) < set(problem.initial(0).weights)


def test_the_problem_of_a_client_keeps_all_the_rest():
    problem = mixed(seed=3, rounds=9)
    for field in ("seed", "rounds", "clients", "classes", "input_shape", "statistics", "train", "proxy", "common_init"):
        assert getattr(problem.of(0), field) == getattr(problem, field)


def test_where_all_are_alike_the_problem_of_a_client_is_the_problem(problem):
    assert problem.of(0) is problem.of(None) is problem
    assert problem.architecture(0) == problem.architecture(None) == ""


def test_all_may_have_a_student_that_is_not_the_servers():
    problem = tiny.problem(mixture={"normed": tiny.normed}, assigned=("normed",) * 3)
    assert problem.initial(0).statistics
    assert not problem.initial().statistics


def test_clients_of_one_architecture_start_alike():
    problem = mixed()
    tiny.assert_same_weights(problem.initial(0), problem.initial(2))
    tiny.assert_same_weights(problem.initial(1), problem.initial(None))
    assert list(problem.initial(0).weights) != list(problem.initial(1).weights)


def test_or_each_from_weights_of_its_own():
    problem = mixed(common_init=False)
    tiny.assert_same_weights(problem.initial(0), problem.initial(0))
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(problem.initial(0), problem.initial(2))
    tiny.assert_same_weights(problem.initial(None), tiny.problem().initial(None))


def test_a_mixed_problem_can_be_sent_to_a_worker():
    problem = mixed(common_init=False)
    copy = pickle.loads(pickle.dumps(problem))  # noqa: S301
    for client in (None, 0, 1, 2):
        tiny.assert_same_weights(copy.initial(client), problem.initial(client))


def test_its_shape_costs_no_memory(problem):
    assert {entry.device.type for entry in problem.shape.weights.values()} == {"meta"}
