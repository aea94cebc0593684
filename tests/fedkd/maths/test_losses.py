"""Loss terms against hand-made values. FedGen's are tested with its invariants (tests/strategies/test_fedgen.py)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fedkd.maths import losses

seeds_of = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cross_entropy_of_even_logits_is_the_log_of_the_number_of_classes():
    assert_close(losses.cross_entropy(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0])), torch.tensor(math.log(4)))


def test_cross_entropy_is_the_mean_over_the_batch():
    logits, y = normal(0, 2, 3), torch.tensor([2, 0])
    each = [-logits[i].log_softmax(0)[y[i]] for i in range(2)]
    assert_close(losses.cross_entropy(logits, y), (each[0] + each[1]) / 2)


def test_proximal_is_half_the_squared_distance():
    learnable = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    received = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([[5.0]])}
    assert float(losses.proximal(learnable, received)) == 0.5 * (1 + 4 + 4)


def test_proximal_leaves_out_what_was_not_received_and_what_is_not_learned():
    learnable = {"private": torch.tensor([9.0]), "head": torch.tensor([2.0])}
    received = {"head": torch.tensor([0.0]), "norm.running_mean": torch.tensor([7.0])}
    assert float(losses.proximal(learnable, received)) == 2.0


def test_proximal_pulls_towards_the_received_weights():
    entry = torch.tensor([1.0, -2.0], requires_grad=True)
    losses.proximal({"a": entry}, {"a": torch.tensor([0.5, 0.5])}).backward()
    assert_close(entry.grad, torch.tensor([0.5, -2.5]))


def test_gradient_of_the_squared_norm_is_the_entry():
    entry = torch.tensor([1.0, -2.0], requires_grad=True)
    loss = losses.squared_norm({"a": entry})
    loss.backward()
    assert loss.item() == 2.5
    assert_close(entry.grad, entry.detach())


def test_kl_reductions_differ_by_the_number_of_classes():
    """Golden, worked out apart from this code."""
    target = torch.tensor([[1.0, 2, 3], [0, 0, 1]]).softmax(1)
    logits = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    assert float(losses.kl(target, logits)) == pytest.approx(0.315196, abs=1e-6)
    assert float(losses.kl_elementwise(logits, target)) == pytest.approx(0.105065, abs=1e-6)


def test_kl_of_golden_logits():
    """Golden: the trap of raw logits as a target, done right."""
    target = torch.tensor([[-1.0, 3.0]]).softmax(1)
    assert float(losses.kl(target, torch.tensor([[2.0, 0.0]]))) == pytest.approx(2.000861, abs=1e-6)


@given(seeds_of)
def test_kl_is_never_negative_and_zero_for_ones_own_output(seed):
    target, logits = normal(seed, 6, 4).softmax(1), normal(seed + 1, 6, 4)
    assert losses.kl(target, logits) >= 0
    assert float(losses.kl(logits.softmax(1), logits)) == pytest.approx(0, abs=1e-12)


@given(seeds_of)
def test_one_trusted_head_is_its_cross_entropy_in_every_form(seed):
    logits, y = normal(seed, 1, 6, 4), torch.arange(6) % 4
    expected, trust = losses.cross_entropy(logits[0], y), torch.ones(1, 4, dtype=torch.float64)
    assert_close(losses.ensemble_cross_entropy(logits, y, trust), expected)
    assert_close(losses.ensemble_cross_entropy_per_client(logits, y, trust), expected)
    assert_close(losses.mean_logits_cross_entropy(logits, y), expected)


def test_ensemble_cross_entropy_is_the_sum_written_out():
    logits, y = normal(0, 2, 3, 4), torch.tensor([0, 3, 3])
    trust = torch.tensor([[0.2, 0.5, 0.9, 1.0], [0.8, 0.5, 0.1, 0.0]], dtype=torch.float64)
    heads = [[-logits[k, i].log_softmax(0)[y[i]] for i in range(3)] for k in range(2)]
    per_label = sum(trust[k, y[i]] * heads[k][i] for k in range(2) for i in range(3)) / 3
    assert_close(losses.ensemble_cross_entropy(logits, y, trust), per_label)
    means = [trust[k, y].mean() * sum(heads[k]) / 3 for k in range(2)]
    assert_close(losses.ensemble_cross_entropy_per_client(logits, y, trust), means[0] + means[1])
    assert_close(losses.heads_cross_entropy(logits, y), torch.tensor(heads, dtype=torch.float64))


def test_mean_logits_are_averaged_before_the_softmax():
    logits = torch.tensor([[[4.0, 0.0]], [[0.0, 2.0]]])
    expected = losses.cross_entropy(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
    assert_close(losses.mean_logits_cross_entropy(logits, torch.tensor([0])), expected)


@given(seeds_of, st.floats(1.1, 10))
def test_diversity_lies_in_its_range_falls_with_scale_and_ignores_translation_and_order(seed, scale):
    noise, z = normal(seed, 8, 3).abs(), normal(seed + 1, 8, 5)
    value = losses.diversity(noise, z)
    assert 0 < value <= 1
    assert losses.diversity(noise, scale * z) < value
    assert_close(losses.diversity(noise, z + 7), value)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    assert_close(losses.diversity(noise[order], z[order]), value)


def test_diversity_is_one_where_all_latents_or_all_noises_coincide():
    noise, z = normal(0, 8, 3), normal(1, 8, 5)
    assert float(losses.diversity(noise, z[:1].expand(8, -1))) == 1
    assert float(losses.diversity(noise[:1].expand(8, -1), z)) == 1


def test_diversity_equals_the_explicit_double_sum():
    noise, z = normal(2, 8, 3).float(), normal(3, 8, 5).float()
    pairs = [((noise[i] - noise[j]) ** 2).mean() * (z[i] - z[j]).abs().mean() for i in range(8) for j in range(8)]
    assert float(losses.diversity(noise, z)) == pytest.approx(math.exp(-float(sum(pairs)) / 64), abs=1e-6)


def test_diversity_can_be_minimised_from_coinciding_latents_without_nan():
    z = torch.zeros(4, 5, requires_grad=True)
    losses.diversity(torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), z).backward()
    assert torch.isfinite(z.grad).all()


def test_a_linear_term_has_its_slope_as_gradient_wherever_the_entries_are():
    entry, other = torch.tensor([3.0, 5.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    slope, start = {"a": torch.tensor([2.0, -1.0])}, {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([9.0])}
    value = losses.linear({"a": entry, "b": other}, slope, start)
    assert value.item() == 2 * 2 - 1 * 4
    value.backward()
    assert_close(entry.grad, slope["a"])
    assert other.grad is None


@given(seeds_of, st.floats(0.5, 20))
def test_softened_kl_is_scaled_by_the_square_of_the_temperature(seed, temperature):
    teacher, logits = normal(seed, 6, 4), normal(seed + 1, 6, 4)
    expected = temperature**2 * losses.kl((teacher / temperature).softmax(1), logits / temperature)
    assert_close(losses.softened_kl(teacher, logits, temperature), expected)
    assert float(losses.softened_kl(logits + 3, logits, temperature)) == pytest.approx(0, abs=1e-9)


def test_softened_kl_leaves_its_teacher_without_gradient():
    teacher, logits = normal(0, 2, 3).requires_grad_(), normal(1, 2, 3).requires_grad_()
    losses.softened_kl(teacher, logits, 2.0).backward()
    assert teacher.grad is None
    assert logits.grad is not None
