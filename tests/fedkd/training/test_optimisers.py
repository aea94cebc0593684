"""Optimisers: the same bits as torch.optim's over several steps."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from fedkd.training.optimisers import RULES, Adaptive, Sgd

SHAPES = {"a": (3, 4), "b": (5,), "c": ()}


def entries(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradients(step: int) -> list[torch.Tensor]:
    return list(entries(100 + step).values())


def play_torch(optimiser_of, parameters: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimiser = optimiser_of(list(parameters.values()))
    for step in range(steps):
        for parameter, gradient in zip(parameters.values(), gradients(step), strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()
    return {name: value.detach() for name, value in parameters.items()}


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.0, 0.01), (0.9, 0.0), (0.9, 0.01)])
def test_sgd_gives_the_bits_of_torch(momentum, weight_decay):
    ours = entries()
    sgd = Sgd(list(ours.values()), 0.1, momentum, weight_decay)
    for step in range(6):
        sgd.step(gradients(step))
    theirs = play_torch(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum, weight_decay=weight_decay, foreach=True), entries(), 6
    )
    tiny.assert_same_weights(ours, theirs)


CLASSES = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__ if name.lower() in RULES}


def played(name: str, keys: dict[str, float], weight_decay: float, parts: int = 1) -> dict[str, torch.Tensor]:
    """Six steps, with an optimiser made anew `parts` times from the memory of the last one."""
    parameters, memory = entries(), None
    for step in range(6):
        if step % (6 // parts) == 0:
            optimiser = Adaptive(parameters, memory, name, **keys)
        optimiser.step(gradients(step), 3e-3, weight_decay)
        memory = optimiser.memory()
    return parameters


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("name", RULES)
def test_an_adaptive_optimiser_gives_the_bits_of_torch_and_goes_on_from_its_memory(name, weight_decay):
    keys = {"momentum": 0.5} if name == "rmsprop" else {"beta1": 0.8, "beta2": 0.99}
    theirs = keys if "momentum" in keys else {"betas": (0.8, 0.99)} if "beta1" in RULES[name].keys else {}
    found = played(name, keys, weight_decay)
    expected = play_torch(
        lambda p: CLASSES[name](p, lr=3e-3, weight_decay=weight_decay, foreach=True, **theirs), entries(), 6
    )
    tiny.assert_same_weights(found, expected)
    tiny.assert_same_weights(played(name, keys, weight_decay, parts=3), found)


def test_nesterovs_momentum_gives_the_bits_of_torch():
    ours = entries()
    sgd = Sgd(list(ours.values()), 0.1, 0.9, 0.01, nesterov=True)
    for step in range(6):
        sgd.step(gradients(step))
    expected = play_torch(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, foreach=True), entries(), 6
    )
    tiny.assert_same_weights(ours, expected)


def test_adams_first_step_is_the_learning_rate_against_the_sign():
    parameter = {"a": torch.tensor([1.0, 1.0])}
    Adaptive(parameter).step([torch.tensor([5.0, -0.01])], 0.1)
    assert_close(parameter["a"], torch.tensor([0.9, 1.1]), atol=1e-6, rtol=0)


def test_adam_changes_neither_the_memory_it_was_given_nor_the_one_it_gave():
    parameters = entries()
    adam = Adaptive(parameters)
    adam.step(gradients(0), 0.01)
    memory = adam.memory()
    before = tiny.canonical(memory)
    adam.step(gradients(1), 0.01)
    Adaptive(parameters, memory).step(gradients(1), 0.01)
    assert tiny.canonical(memory) == before


def test_sgd_changes_no_gradient():
    given = gradients(0)
    before = tiny.canonical(given)
    sgd = Sgd(list(entries().values()), 0.1, 0.9, 0.01)
    sgd.step(given)
    sgd.step(given)
    assert tiny.canonical(given) == before


def test_a_parameter_without_gradient_stays_as_it_is():
    parameters = [torch.ones(2), torch.ones(2)]
    Sgd(parameters, 0.1, weight_decay=0.5).step([None, torch.ones(2)])
    assert parameters[0].tolist() == [1, 1]
    assert_close(parameters[1], torch.full((2,), 1 - 0.1 * 1.5))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_may_be_missing_in_some_steps_only(momentum):
    ours, theirs = [torch.ones(2), torch.ones(2)], [torch.ones(2, requires_grad=True) for _ in range(2)]
    sgd, reference = Sgd(ours, 0.1, momentum), torch.optim.SGD(theirs, lr=0.1, momentum=momentum)
    for given in ([torch.ones(2), None], [torch.ones(2), torch.ones(2)], [None, torch.ones(2)]):
        sgd.step(given)
        for parameter, gradient in zip(theirs, given, strict=True):
            parameter.grad = gradient
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other.detach())


@pytest.mark.parametrize(("mu", "expected"), [(0.0, (0.729, 1.976)), (1.0, (0.756, 1.876))])
def test_two_scalar_clients_reach_the_golden_weights(mu, expected):
    """Golden: tests/quadratics.py, L_k = a/2 (w - b)^2; FedAvg and FedProx in three exact steps."""
    for a, b, goal in ((1, 0, expected[0]), (2, 3, expected[1])):
        w = torch.tensor([1.0])
        sgd = Sgd([w], 0.1)
        for _ in range(3):
            sgd.step([a * (w - b) + mu * (w - 1)])
        assert float(w) == pytest.approx(goal, abs=1e-6)
