"""LocalOptimiser: one participation of a client, clipped and with moments kept, as torch would have it."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd import rounds
from fedkd.config import TrainConfig
from fedkd.training.optimisers import RULES, LocalOptimiser
from strategies.fedavg import FedAvg

ADAM = TrainConfig(optimiser="adam", lr=0.01)
KEPT = replace(ADAM, moments="keep")
TARGET = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[0.5]])}


def entries() -> dict[str, torch.Tensor]:
    return {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor([[3.0]], requires_grad=True)}


def loss(parameters: dict[str, torch.Tensor], scale: float = 1.0) -> torch.Tensor:
    return scale * sum(((value - TARGET[name]) ** 2).sum() for name, value in parameters.items())


def descend(config: TrainConfig, steps: int, participations: int = 1, lr: float = 0.01) -> dict[str, torch.Tensor]:
    parameters, memory = entries(), {}
    for _ in range(participations):
        optimiser = LocalOptimiser(config, parameters, lr, memory)
        for _ in range(steps):
            optimiser.step(loss(parameters))
        memory = optimiser.memory()
    return {name: value.detach() for name, value in parameters.items()}


def test_adam_with_moments_kept_over_participations_is_one_long_adam():
    tiny.assert_same_weights(descend(KEPT, 3, participations=4), descend(ADAM, 12))


def test_adam_that_is_reset_is_another():
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(descend(ADAM, 3, participations=4), descend(ADAM, 12))


def test_adam_is_torchs():
    parameters = entries()
    optimiser = torch.optim.Adam(list(parameters.values()), lr=0.01, foreach=True, weight_decay=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        loss(parameters).backward()
        optimiser.step()
    tiny.assert_same_weights(
        descend(replace(ADAM, weight_decay=0.1), 5), {k: v.detach() for k, v in parameters.items()}
    )


@pytest.mark.parametrize("name", [name for name in RULES if name != "adam"])
def test_every_other_one_can_keep_its_moments_too(name):
    kept = replace(KEPT, optimiser=name, momentum=0.5)
    tiny.assert_same_weights(descend(kept, 3, participations=2), descend(replace(kept, moments="reset"), 6))
    with pytest.raises(AssertionError):
        tiny.assert_same_weights(descend(replace(kept, moments="reset"), 3, participations=2), descend(kept, 6))


def test_only_adams_moments_are_remembered_and_only_if_they_are_kept():
    for config, is_kept in (
        (TrainConfig(momentum=0.9), False),
        (replace(KEPT, optimiser="sgd"), False),
        (ADAM, False),
        (KEPT, True),
    ):
        parameters = entries()
        optimiser = LocalOptimiser(config, parameters, 0.1)
        optimiser.step(loss(parameters))
        assert bool(optimiser.memory()) == is_kept


def test_the_learning_rate_is_the_one_given_not_the_configured():
    """It decays over rounds."""
    assert_close(descend(replace(ADAM, lr=9.0), 2, lr=0.01), descend(ADAM, 2, lr=0.01))
    with pytest.raises(AssertionError):
        assert_close(descend(ADAM, 2, lr=0.02), descend(ADAM, 2, lr=0.01))


# Clipping


def test_a_gradient_above_the_limit_is_scaled_to_it_as_a_whole():
    """Gradients -4, -4 and 5: their norm is sqrt(57)."""
    found = descend(TrainConfig(clip=1.0), 1, lr=1.0)
    assert_close(found["a"], torch.tensor([1.0, 2.0]) + 4 / 57**0.5)
    assert_close(found["b"], torch.tensor([[3.0]]) - 5 / 57**0.5)


def test_a_gradient_below_the_limit_stays_to_the_last_bit():
    tiny.assert_same_weights(descend(TrainConfig(clip=100.0), 1), descend(TrainConfig(), 1))


def test_clipping_is_torchs():
    parameters = entries()
    loss(parameters).backward()
    torch.nn.utils.clip_grad_norm_(list(parameters.values()), 2.0)
    expected = {name: (value - 0.1 * value.grad).detach() for name, value in parameters.items()}
    assert_close(descend(TrainConfig(clip=2.0), 1, lr=0.1), expected)


def test_the_limit_holds_for_adam_too():
    """A huge gradient and one at the limit in the same direction are then the same."""
    parameters, others = entries(), entries()
    LocalOptimiser(replace(ADAM, clip=1.0), parameters, 0.1).step(loss(parameters, 1e6))
    LocalOptimiser(replace(ADAM, clip=1.0), others, 0.1).step(loss(others, 1e3))
    assert_close({k: v.detach() for k, v in parameters.items()}, {k: v.detach() for k, v in others.items()})


# Parameters that the loss does not reach


@pytest.mark.parametrize("config", [TrainConfig(clip=0.1, weight_decay=0.5), replace(KEPT, clip=0.1, weight_decay=0.5)])
def test_a_parameter_that_the_loss_does_not_reach_stays_as_it_is(config):
    parameters = entries()
    optimiser = LocalOptimiser(config, parameters, 0.1)
    optimiser.step((parameters["a"] ** 2).sum())
    assert parameters["b"].tolist() == [[3.0]]
    assert parameters["a"].tolist() != [1.0, 2.0]


def test_its_moments_stay_too():
    parameters = entries()
    optimiser = LocalOptimiser(KEPT, parameters, 0.1)
    optimiser.step(loss(parameters))
    before = optimiser.memory()
    optimiser.step((parameters["a"] ** 2).sum())
    tiny.assert_same(tiny.canonical(optimiser.memory()["mean"]["b"]), tiny.canonical(before["mean"]["b"]))
    assert optimiser.memory()["step"] == 2


# In a run


def test_moments_stay_with_the_client_from_round_to_round():
    problem = tiny.problem(train=replace(tiny.TRAIN, optimiser="adam", moments="keep", lr=0.01))
    site = tiny.site(Supervised(), problem)
    played = tiny.play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site), count=2)
    for state in played[-1].state.clients.values():
        assert state.optimiser["step"] == 2 * problem.train.steps
        assert set(state.optimiser["mean"]) == set(problem.initial().learnable)
    assert played[0].state.clients[0].optimiser["step"] == problem.train.steps


def test_by_default_nothing_of_the_optimiser_outlives_a_round(experiment, engine):
    played = tiny.play(experiment, engine)[0]
    assert all(state.optimiser == {} for state in played.state.clients.values())


def test_kept_moments_change_what_is_learned():
    found = []
    for moments in ("reset", "keep"):
        problem = tiny.problem(train=replace(tiny.TRAIN, optimiser="adam", moments=moments, lr=0.01))
        site = tiny.site(Supervised(), problem)
        played = tiny.play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site), count=2)
        found.append([tiny.canonical(each.state.server) for each in played])
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_kept_moments_survive_a_checkpoint(tmp_path):
    from fedkd.record import checkpoint

    problem = tiny.problem(train=replace(tiny.TRAIN, optimiser="adam", moments="keep"))
    site = tiny.site(Supervised(), problem)
    experiment, engine = tiny.experiment(FedAvg(), site), tiny.FakeEngine(site)
    first, second = tiny.play(experiment, engine, count=2)
    checkpoint.commit(tmp_path, first.state, {}, "digest")
    loaded = checkpoint.load(tmp_path, experiment, "digest", warn=pytest.fail)
    again = rounds.run_round(experiment, engine, loaded.state)
    tiny.assert_same(tiny.canonical(again.state), tiny.canonical(second.state))


def test_a_site_goes_on_with_the_clients_moments_or_those_it_is_given(site):
    site = replace(site, problem=replace(site.problem, train=replace(tiny.TRAIN, optimiser="adam", moments="keep")))
    state = tiny.fit(site.client, tiny.job(site.problem), site).state
    job, learnable = tiny.job(site.problem, state=state), site.problem.initial().learnable
    assert site.optimiser(job, learnable).memory()["step"] == 3
    assert site.optimiser(job, learnable, {**state.optimiser, "step": 8}).memory()["step"] == 8
    assert site.optimiser(job, learnable, {}).memory()["step"] == 0
