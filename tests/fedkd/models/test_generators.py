"""FedGen's generator against torch's own modules, and its invariants (docs/strategies/fedgen.md, equation 1)."""

import functools

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from fedkd import seeds, student
from fedkd.models import generators, students

STREAM = seeds.stream(1, "generator")
NOISE, HIDDEN, LATENT, CLASSES = 5, 8, 4, 3

both = pytest.mark.parametrize("conditioning", ["one_hot", "embedding"])


def init(conditioning="one_hot"):
    sizes = {"noise": NOISE, "hidden": HIDDEN, "latent": LATENT, "classes": CLASSES}
    return generators.init(STREAM, **sizes, conditioning=conditioning)


def draw(batch=16):
    generator = STREAM.child("draw").torch()
    y = torch.randint(CLASSES, (batch,), generator=generator)
    return y, generators.draw_noise((batch, NOISE), generator)


def reference(weights):
    """The same entries in torch's modules."""
    layers = [
        nn.Linear(weights["hidden.weight"].shape[1], HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, LATENT),
    ]
    modules = nn.Sequential(*layers)
    places = {"hidden": "0", "norm": "1", "out": "3"}
    entries = {name: value.clone() for name, value in weights.items() if name.split(".")[0] in places}
    renamed = {f"{places[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in entries.items()}
    modules.load_state_dict(renamed, strict=False)
    return modules


def joined(weights, y, noise):
    """concat(noise, label), the slow way."""
    label = nn.functional.one_hot(y, CLASSES).float()
    return torch.cat([noise, label @ weights["embedding.weight"] if "embedding.weight" in weights else label], 1)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"noise": 32, "hidden": 256, "latent": 32, "classes": 10}, 19_744),  # MNIST
        ({"noise": 32, "hidden": 256, "latent": 32, "classes": 26}, 23_840),  # EMNIST
        ({"noise": 32, "hidden": 128, "latent": 32, "classes": 2}, 8_864),  # CelebA
    ],
)
def test_parameter_counts_are_the_published_ones(sizes, expected):
    weights = generators.init(STREAM, **sizes)
    assert sum(weights[name].numel() for name in generators.learnable(weights)) == expected


def test_learnable_entries_are_all_but_the_running_statistics():
    linear = ("hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "out.weight", "out.bias")
    assert generators.learnable(init()) == linear
    assert generators.learnable(init("embedding")) == ("embedding.weight", *linear)
    assert set(init()) - set(linear) == {"norm.running_mean", "norm.running_var"}


@both
def test_initial_entries_are_the_very_numbers_of_torchs_constructors(conditioning):
    weights = init(conditioning)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(STREAM.torch().get_state())
        embedding = nn.Embedding(CLASSES, NOISE) if conditioning == "embedding" else None
        hidden = nn.Linear(NOISE + (NOISE if embedding else CLASSES), HIDDEN)
        out = nn.Linear(HIDDEN, LATENT)
    if embedding:
        assert torch.equal(weights["embedding.weight"], embedding.weight)
    for name, layer in (("hidden", hidden), ("out", out)):
        assert_close(weights[f"{name}.weight"], layer.weight.detach())  # kaiming's bound is rounded otherwise
        assert_close(weights[f"{name}.bias"], layer.bias.detach())


def test_init_leaves_torchs_global_generator_alone():
    before = torch.get_rng_state()
    first = init()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], value) for name, value in init().items())


@both
def test_eval_equals_torchs_modules(conditioning):
    weights = init(conditioning)
    weights["norm.running_mean"].uniform_(-1, 1, generator=STREAM.torch())
    weights["norm.running_var"].uniform_(0.5, 2, generator=STREAM.torch())
    y, noise = draw()
    assert_close(generators.generate(weights, y, noise), reference(weights).eval()(joined(weights, y, noise)))


@both
def test_training_equals_torchs_modules_with_gradients_and_statistics(conditioning):
    weights = init(conditioning)
    modules = reference(weights).train()
    names = generators.learnable(weights)
    for name in names:
        weights[name].requires_grad_()
    y, noise = draw()
    z, expected = generators.generate(weights, y, noise, training=True), modules(joined(weights, y, noise))
    assert_close(z, expected)
    assert_close(weights["norm.running_mean"], modules[1].running_mean)
    assert_close(weights["norm.running_var"], modules[1].running_var)
    assert not torch.equal(weights["norm.running_var"], torch.ones(HIDDEN))
    aim = torch.rand(z.shape, generator=STREAM.torch())
    theirs = dict(modules.named_parameters())
    gradients = dict(zip(names, torch.autograd.grad((z * aim).sum(), [weights[name] for name in names]), strict=True))
    for (place, parameter), name in zip(theirs.items(), names[-6:], strict=True):
        expected_gradient = torch.autograd.grad((expected * aim).sum(), parameter, retain_graph=True)[0]
        assert_close(gradients[name], expected_gradient, msg=f"{name} {place}", rtol=1e-4, atol=1e-6)
    if conditioning == "embedding":
        assert gradients["embedding.weight"].abs().sum() > 0


def test_running_variance_is_unbiased_with_momentum_a_tenth():
    weights = init()
    y, noise = draw(batch=4)
    hidden = nn.functional.linear(joined(weights, y, noise), weights["hidden.weight"], weights["hidden.bias"])
    generators.generate(weights, y, noise, training=True)
    assert_close(weights["norm.running_var"], 0.9 + 0.1 * hidden.var(0, unbiased=True))
    assert_close(weights["norm.running_mean"], 0.1 * hidden.mean(0))


@both
def test_eval_is_a_function_of_label_and_noise_alone(conditioning):
    weights = init(conditioning)
    before = {name: value.clone() for name, value in weights.items()}
    y, noise = draw()
    together = generators.generate(weights, y, noise)
    assert torch.equal(together, generators.generate(weights, y, noise))
    assert_close(together[3:4], generators.generate(weights, y[3:4], noise[3:4]))  # no sample sees another
    assert all(torch.equal(value, before[name]) for name, value in weights.items())


@both
def test_label_and_noise_both_matter(conditioning):
    weights = init(conditioning)
    y, noise = draw()
    z = generators.generate(weights, y, noise)
    assert not torch.allclose(z, generators.generate(weights, (y + 1) % CLASSES, noise))
    assert not torch.allclose(z, generators.generate(weights, y, noise.flip(0)))


@pytest.mark.parametrize("name", tiny.STUDENTS)
def test_latents_are_what_the_head_of_a_student_takes(name):
    built = student.build(functools.partial(students.make, name, (1, 8, 8), CLASSES), STREAM)
    sizes = {"noise": NOISE, "hidden": HIDDEN, "latent": built.latent_width, "classes": built.num_classes}
    z = generators.generate(generators.init(STREAM, **sizes), *draw())
    assert built.classify(z).shape == (16, CLASSES)


def test_noise_follows_its_law_and_its_generator():
    uniform = generators.draw_noise((4000, 2), STREAM.torch())
    assert uniform.shape == (4000, 2)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    normal = generators.draw_noise((4000, 2), STREAM.torch(), "normal")
    assert abs(float(normal.mean())) < 0.05
    assert abs(float(normal.std()) - 1) < 0.05
    assert torch.equal(uniform, generators.draw_noise((4000, 2), STREAM.torch(), "uniform"))


def test_a_cohort_of_clients_can_generate_at_once():
    weights = init()
    y, noise = draw()
    batched = torch.func.vmap(lambda y_B, noise_BN: generators.generate(weights, y_B, noise_BN))
    z = batched(y.view(2, 8), noise.view(2, 8, NOISE))
    assert_close(z.flatten(0, 1), generators.generate(weights, y, noise))
