"""A generator trained against frozen students: it learns, touches nothing else, and no client can stop it."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.testing import assert_close

from fedkd import seeds
from fedkd.border import checks
from fedkd.distillation import image_distillation
from fedkd.distillation.image_distillation import ClientModel, Training
from fedkd.models import image_generators, students
from fedkd.problem import Problem

STREAM = seeds.stream(3, "test")
SHAPE = (1, 8, 8)
RECIPE = Training(
    steps=4, batch=8, clients=2, lr=2e-3, noise=4, statistics_weight=0.3, diversity_weight=2.0, diversity_cap=0.35
)
EMPTY = {"step": 0, "mean": {}, "square": {}}


def problem(*names: str) -> Problem:
    """Clients whose students are called so."""
    mixture = {name: partial(students.make, name, SHAPE, 3) for name in names}
    first = tiny.problem(mixture[names[0]], clients=len(names), input_shape=SHAPE)
    return replace(first, mixture=mixture, assigned=names)


def client_model(posed: Problem, client: int, distribution=(1.0, 1.0, 1.0)) -> ClientModel:
    weights = posed.of(client).student(seeds.stream(client, "weights")).weights
    return ClientModel(
        posed.architecture(client), weights, torch.tensor(distribution, dtype=torch.float64), torch.zeros(3)
    )


def generator():
    return image_generators.init(STREAM, noise=4, classes=3, shape=SHAPE)


def train(posed, judges, **changes):
    settings = replace(RECIPE, **changes)
    trained, numbers = image_distillation.train(posed, generator(), EMPTY, judges, settings, STREAM)
    return SimpleNamespace(generator=trained.generator, adam=trained.adam, numbers=numbers)


MIXED = problem("knfu-cnn-bn", "mlp")


def test_the_client_models_come_to_recognise_what_is_generated():
    posed = problem("mlp")
    drawn = client_model(posed, 0)
    models = [replace(drawn, weights={n: 3 * entry for n, entry in drawn.weights.items()})]  # of some opinion
    short = train(posed, models, steps=2, diversity_weight=0)
    long = train(posed, models, steps=120, diversity_weight=0)
    assert long.numbers["recognised"] < 0.3 * short.numbers["recognised"]
    y = image_distillation.balanced(torch.ones(3, dtype=torch.bool), 60)
    x = image_distillation.draw_images(long.generator, y, 4, posed, STREAM)
    assert (image_distillation.predict(posed, models, x)[0].argmax(1) == y).double().mean() > 0.9


def test_training_changes_neither_the_generator_given_nor_the_client_models():
    given, models = generator(), [client_model(MIXED, k) for k in range(2)]
    before = tiny.canonical([given, models, EMPTY])
    image_distillation.train(MIXED, given, EMPTY, models, RECIPE, STREAM)
    tiny.assert_same(tiny.canonical([given, models, EMPTY]), before)


def test_the_same_stream_gives_the_same_bytes_and_moments_go_on():
    models = [client_model(MIXED, k) for k in range(2)]
    one, other = (train(MIXED, models) for _ in range(2))
    tiny.assert_same(*(tiny.canonical([made.generator, made.adam, made.numbers]) for made in (one, other)))
    assert one.adam["step"] == 4
    again, _ = image_distillation.train(MIXED, one.generator, one.adam, models, RECIPE, STREAM)
    assert again.adam["step"] == 8


@pytest.mark.parametrize(("switch", "term"), [("statistics_weight", "statistics"), ("diversity_weight", "diversity")])
def test_a_term_of_weight_zero_is_not_computed(switch, term):
    models = [client_model(MIXED, k) for k in range(2)]
    assert term in train(MIXED, models).numbers
    assert term not in train(MIXED, models, **{switch: 0.0}).numbers


def test_where_no_student_has_statistics_their_weight_has_no_effect():
    posed = problem("mlp")
    on, off = (train(posed, [client_model(posed, 0)], statistics_weight=weight) for weight in (0.3, 0.0))
    tiny.assert_same(tiny.canonical(on), tiny.canonical(off))


def test_statistics_are_averaged_over_the_students_that_have_any():
    """A second student without BatchNorm does not halve the term."""
    with_bn, without = client_model(MIXED, 0), client_model(MIXED, 1)
    students_ = image_distillation._Students(MIXED)
    y_KB, noise = torch.tensor([[0, 1, 2, 0]]), torch.randn(4, 4, generator=STREAM.torch())
    x = image_generators.generate(generator(), y_KB[0], noise, SHAPE)
    alone = dict(image_distillation._terms(students_, [with_bn], x, y_KB, noise, RECIPE))
    twice = x.repeat(2, 1, 1, 1), y_KB.repeat(2, 1), noise.repeat(2, 1)
    pair = image_distillation._terms(students_, [with_bn, without], *twice, RECIPE)
    assert_close(dict(pair)["statistics"], alone["statistics"])


def test_the_statistics_term_is_the_distance_at_the_input_of_each_norm():
    posed = problem("knfu-cnn-bn")
    its = client_model(posed, 0)
    weights = {**its.weights, "conv1.norm.running_mean": torch.full((16,), 0.5)}
    its = replace(its, weights=weights)
    x = torch.rand(6, *SHAPE, generator=STREAM.torch())
    _, (first, _) = image_distillation._Students(posed).compare(its, x)
    inner = torch.nn.functional.conv2d(x, weights["conv1.conv.weight"], weights["conv1.conv.bias"], 2, 2)
    variance, mean = torch.var_mean(inner, [0, 2, 3], correction=0)
    assert_close(first, (mean - 0.5).norm() + (variance - 1).norm())


def test_a_label_of_probability_zero_is_never_drawn_nor_made():
    held = torch.tensor([True, False, True])
    labels = image_distillation.balanced(held, 7)
    assert labels.tolist() == [0, 2, 0, 2, 0, 2, 0]
    draws = STREAM.torch()
    drawn = image_distillation._labels(torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), 500, draws)
    assert set(drawn.tolist()) == {0, 2}


def test_the_prior_of_a_client_counts():
    posed = problem("mlp")
    plain = client_model(posed, 0)
    skewed = replace(plain, log_prior_C=torch.tensor([0.0, -5.0, -5.0]))
    assert train(posed, [plain], steps=1).numbers["recognised"] != train(posed, [skewed], steps=1).numbers["recognised"]


def test_a_student_that_answers_nan_changes_nothing_but_its_own_steps():
    posed = problem("mlp", "mlp")
    good = client_model(posed, 0)
    bad = replace(good, weights={**good.weights, "head.bias": torch.full((3,), torch.nan)})
    trained = train(posed, [good, bad], clients=1, steps=12)
    assert all(bool(entry.isfinite().all()) for entry in trained.generator.values())
    assert 0 < trained.adam["step"] < 12


# Diversity and collapse


def test_diversity_is_the_mean_ratio_over_pairs_of_one_label():
    x = torch.tensor([0.0, 0.4, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    noise = torch.tensor([[0.0, 0.0], [2.0, 2.0], [1.0, 1.0]])
    assert float(image_distillation.diversity(x, torch.tensor([0, 0, 1]), noise)) == pytest.approx(0.2)
    assert float(image_distillation.diversity(x, torch.tensor([0, 0, 0]), noise)) == pytest.approx(
        (0.2 + 1.0 + 0.6) / 3
    )
    assert float(image_distillation.diversity(x, torch.tensor([0, 1, 2]), noise)) == 0


def test_variety_beyond_the_cap_is_not_rewarded():
    posed = problem("mlp")
    assert train(posed, [client_model(posed, 0)], steps=1, diversity_cap=1e-6).numbers["diversity"] == pytest.approx(
        -2e-6
    )


def test_constant_answers_vary_by_nothing_and_opposite_ones_by_half():
    constant = torch.tensor([[0.2, 0.8]]).log().expand(1, 50, 2)
    assert image_distillation.variation(constant) == pytest.approx(0, abs=1e-6)
    opposite = torch.tensor([[1.0, 1e-30], [1e-30, 1.0]]).log().repeat(1, 1, 1)
    assert image_distillation.variation(opposite) == pytest.approx(1.0)


def test_what_is_said_of_images_is_right_where_it_can_be_counted():
    y = torch.tensor([0, 0, 2, 2])
    fused = torch.eye(3)[torch.tensor([[0, 1, 2, 2]])]
    found = image_distillation.describe(torch.zeros(4, *SHAPE, dtype=torch.uint8), y, torch.zeros(1, 4, 3), fused)
    assert found["fidelity"] == 0.75
    assert found["fidelity_by_label"] == [0.5, -1.0, 1.0]
    assert found["spread"] == 0


# What comes in


def upload(posed, client):
    return {name: entry[None] for name, entry in client_model(posed, client).weights.items()}


@pytest.mark.parametrize("client", [0, 1])
def test_a_whole_student_of_the_clients_architecture_is_accepted(client):
    image_distillation.check_upload(MIXED, client, upload(MIXED, client))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda e: {}, "names"),
        (lambda e: {**e, "more": torch.zeros(1)}, "names"),
        (lambda e: {**e, "head.bias": torch.zeros(1, 4)}, "shape"),
        (lambda e: {**e, "head.bias": torch.zeros(2, 3)}, "shape"),
        (lambda e: {**e, "head.bias": torch.zeros(1, 3, dtype=torch.int64)}, "dtype"),
        (lambda e: {**e, "conv1.norm.running_var": torch.full((1, 16), -1.0)}, "range"),
        (lambda e: {**e, "fc1.linear.weight": torch.full_like(e["fc1.linear.weight"], 3e38)}, "non_finite"),
    ],
)
def test_anything_else_is_refused(change, cause):
    with pytest.raises(checks.Refused) as refused:
        image_distillation.check_upload(MIXED, 0, change(upload(MIXED, 0)))
    assert refused.value.cause == cause


def test_a_student_of_another_architecture_is_refused():
    with pytest.raises(checks.Refused, match="entries"):
        image_distillation.check_upload(MIXED, 0, upload(MIXED, 1))
