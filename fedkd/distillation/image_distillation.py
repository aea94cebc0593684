"""Image distillation: a generator of images, trained at a server against clients' frozen students.

Its images are a transfer set if there is no public one (docs/strategies/fedfuse.md). The server holds the clients'
weights and draws images like their data: the docs of a strategy that uses this say what trust it needs.
Shapes: K client models, B images, N noise width or images of a set, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedkd.border import checks
from fedkd.distillation import loop
from fedkd.distillation.loop import Optimised
from fedkd.maths import losses, metrics
from fedkd.models import image_generators
from fedkd.payload import Numbers, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream, stream
from fedkd.student import Student
from fedkd.training import forward

Norms = nn.BatchNorm1d | nn.BatchNorm2d
BETAS = (0.5, 0.999)  # of the generator's Adam
CHUNK = 250  # images made at once
LOOKED_AT = 200  # images for measures over pairs, whose number grows with the square


@dataclass(frozen=True)
class ClientModel:
    """A client's student, frozen and in eval mode, as the generator's training uses it."""

    architecture: str  # of the problem
    weights: Weights  # all entries, including BatchNorm statistics
    distribution_C: Tensor  # probabilities of the labels of its images, float64
    log_prior_C: Tensor  # added to its logits; zeros if its logits already include its prior


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the generator is trained (docs/strategies/fedfuse.md, equations 10 to 12)."""

    steps: int
    batch: int  # images per client model and step
    clients: int  # drawn per step
    lr: float
    noise: int
    statistics_weight: float  # of the distance to the client models' BatchNorm statistics; 0: off
    diversity_weight: float  # 0: off
    diversity_cap: float


def train(
    problem: Problem,
    generator: Weights,
    adam: Mapping[str, Any],
    models: Sequence[ClientModel],
    settings: Training,
    draw: Stream,
) -> tuple[Optimised, Numbers]:
    """Train the generator; returns mean terms of the last steps too. Each step draws a few models and their labels.

    Labels follow each model's distribution: its statistics are compared with those of images of its own label mixture.
    """
    draws, students = draw.torch(), _Students(problem)
    per_step = min(settings.clients, len(models))

    def terms(entries: Weights) -> Iterator[tuple[str, Tensor]]:
        chosen = [models[k] for k in torch.randperm(len(models), generator=draws)[:per_step].tolist()]
        y_KB = torch.stack([_labels(model.distribution_C, settings.batch, draws) for model in chosen])
        noise_BN = torch.randn(y_KB.numel(), settings.noise, generator=draws)
        x = image_generators.generate(entries, y_KB.flatten(), noise_BN, problem.input_shape, training=True)
        return _terms(students, chosen, x, y_KB, noise_BN, settings)

    optimised = loop.optimise(
        generator,
        adam,
        terms,
        steps=settings.steps,
        lr=settings.lr,
        betas=BETAS,
        skip_non_finite=True,  # a student may be finite on noise, but not here: one client must not stop the others
    )
    recent = [{name: float(value) for name, value in terms.items()} for terms in optimised.recent]
    return optimised, metrics.mean_by_name(recent)  # by name: a step may lack a term


def draw_images(generator: Weights, y_N: Tensor, noise: int, problem: Problem, draw: Stream) -> Tensor:
    """Images of the given labels as bytes (N, channels, height, width), normalised by the running statistics."""
    noise_NN = torch.randn(len(y_N), noise, generator=draw.torch())
    with torch.inference_mode():
        parts = [
            image_generators.generate(generator, y, noise_BN, problem.input_shape)
            for y, noise_BN in zip(y_N.split(CHUNK), noise_NN.split(CHUNK), strict=True)
        ]
    return image_generators.to_bytes(torch.cat(parts)).clone()


def predict(problem: Problem, models: Sequence[ClientModel], x: Tensor) -> Tensor:
    """Logits (K, N, C) of the models on images as bytes, without priors."""
    students, scaled = _Students(problem), image_generators.from_bytes(x)
    return torch.stack([students.answer(model, scaled) for model in models])


def check_upload(problem: Problem, client: int, entries: Weights) -> None:
    """Checks that `samples` hold a student of the client's architecture, each entry with a first axis of 1.

    The border has checked that entries are finite; logits on noise must be finite too. Raises border.Refused.
    """
    shape = problem.of(client).shape
    wanted = shape.learnable | shape.statistics
    if set(entries) != set(wanted):
        raise checks.Refused("names", f"samples has entries {sorted(entries)}, expected {sorted(wanted)}")
    for name, entry in wanted.items():
        got, expected = tuple(entries[name].shape), (1, *entry.shape)
        if got != expected or entries[name].dtype != torch.float32:
            what = f"samples: '{name}' has shape {got} and dtype {entries[name].dtype}, expected {expected} and float32"
            raise checks.Refused("shape" if got != expected else "dtype", what)
        if name.endswith("running_var") and bool((entries[name] < 0).any()):
            raise checks.Refused("range", f"samples: '{name}' has negative variances")
    nothing = torch.zeros(problem.classes)
    student = ClientModel(problem.architecture(client), {n: e[0] for n, e in entries.items()}, nothing, nothing)
    noise = 2 * torch.rand(8, *problem.input_shape, generator=stream(problem.seed, "noise images").torch()) - 1
    if not bool(_Students(problem).answer(student, noise).isfinite().all()):
        raise checks.Refused("non_finite", "samples: this student's logits on noise are not finite")


def balanced(held_C: Tensor, count: int) -> Tensor:
    """Labels (count,), in turn over the held ones: their counts differ by at most 1."""
    labels = held_C.nonzero().flatten()
    return labels[torch.arange(count) % len(labels)]


def diversity(x: Tensor, y_B: Tensor, noise_BN: Tensor) -> Tensor:
    """Mean of |x_i - x_j| / |noise_i - noise_j| over pairs of one label: docs/strategies/fedfuse.md, equation 12."""
    rows, columns = torch.triu_indices(len(y_B), len(y_B), 1)
    same = y_B[rows] == y_B[columns]
    rows, columns = rows[same], columns[same]
    if not len(rows):
        return x.new_zeros(())
    flat = x.flatten(1)
    images = (flat[rows] - flat[columns]).abs().mean(1)
    noises = (noise_BN[rows] - noise_BN[columns]).abs().mean(1)
    return (images / noises.clamp(min=1e-6)).mean()


def describe(x: Tensor, y_N: Tensor, log_KNC: Tensor, fused_RNC: Tensor) -> dict[str, Any]:
    """Quality of the images, for the ledger; `x` as bytes.

    fidelity: share of images to which the fused teachers give the intended label, also by label (-1: none made).
    spread: mean pairwise distance of images within a label, at most 2. variation: mean pairwise total variation between
    a model's answers, mean over models; near 0, the models cannot tell the images apart.
    """
    right_N = (fused_RNC.argmax(2) == y_N).double().mean(0)
    classes = fused_RNC.shape[2]
    count_C = torch.bincount(y_N, minlength=classes)
    by_label_C = torch.bincount(y_N, right_N, classes) / count_C
    few = image_generators.from_bytes(x[:LOOKED_AT]).flatten(1)
    y_B = y_N[:LOOKED_AT]
    same = (y_B[:, None] == y_B) & ~torch.eye(len(y_B), dtype=torch.bool)
    distance = torch.cdist(few, few, p=1) / few.shape[1]
    return {
        "fidelity": float(right_N.mean()),
        "fidelity_by_label": [round(v, 4) if n else -1.0 for v, n in zip(by_label_C.tolist(), count_C, strict=True)],
        "spread": float(distance[same].mean()) if bool(same.any()) else 0.0,
        "variation": variation(log_KNC),
    }


def variation(log_KNC: Tensor) -> float:
    """Mean pairwise total variation between the rows of each S_k, mean over k; 0 = constant answers."""
    prob_KBC = log_KNC[:, :LOOKED_AT].exp()
    size = prob_KBC.shape[1]
    return float(torch.cdist(prob_KBC, prob_KBC, p=1).mean() / 2 * size / max(1, size - 1))


class _Students:
    """One module per architecture, shared by its models: building a module costs more than loading entries."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._modules: dict[str, Student] = {}

    def module(self, architecture: str) -> Student:
        """The module of an architecture, frozen and in eval mode, with initial entries."""
        if architecture not in self._modules:
            module = self._problem.alike(architecture).initial()
            self._modules[architecture] = module.requires_grad_(False).eval()
        return self._modules[architecture]

    def answer(self, model: ClientModel, x: Tensor) -> Tensor:
        """Logits (N, C) without gradient, for any number of images."""
        return forward.logits(self.module(model.architecture).load(model.weights), x)

    def compare(self, model: ClientModel, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C), and the distance of the images' statistics from the student's at each BatchNorm.

        The call uses the model's own tensors: loading the next model into the module would break this one's graph.
        """
        module = self.module(model.architecture)
        with _watch(module, model.weights) as distances:
            logits = torch.func.functional_call(module, dict(model.weights), (x,))
        return logits, distances


@contextmanager
def _watch(module: nn.Module, weights: Weights) -> Iterator[list[Tensor]]:
    """Collects |mean - running mean| + |var - running var| of the input of each BatchNorm during the next forward."""
    distances: list[Tensor] = []
    handles: list[RemovableHandle] = []
    for name, norm in module.named_modules():
        if isinstance(norm, Norms) and f"{name}.running_mean" in weights:
            mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]

            def look(
                _: nn.Module, inputs: tuple[Tensor, ...], mean: Tensor = mean, variance: Tensor = variance
            ) -> None:
                dims = [0, *range(2, inputs[0].dim())]
                got = torch.var_mean(inputs[0], dims, correction=0)
                distances.append((got[1] - mean).norm() + (got[0] - variance).norm())

            handles.append(norm.register_forward_pre_hook(look))
    try:
        yield distances
    finally:
        for handle in handles:
            handle.remove()


def _terms(
    students: _Students, chosen: Sequence[ClientModel], x: Tensor, y_KB: Tensor, noise_BN: Tensor, settings: Training
) -> Iterator[tuple[str, Tensor]]:
    """Named summands of the generator's loss: means over the models, for statistics over models with BatchNorm."""
    recognised, distances = [], []
    for model, images, y_B in zip(chosen, x.split(y_KB.shape[1]), y_KB, strict=True):
        logits, norms = students.compare(model, images)
        recognised.append(losses.cross_entropy(logits + model.log_prior_C, y_B))
        if norms:
            distances.append(torch.stack(norms).sum())
    yield "recognised", torch.stack(recognised).mean()
    if settings.statistics_weight and distances:
        yield "statistics", settings.statistics_weight * torch.stack(distances).mean()
    if settings.diversity_weight:
        # Pairs within one model's batch suffice: pairs across batches are many more and add no information.
        apart_KB = y_KB + y_KB.max().add(1) * torch.arange(len(y_KB))[:, None]
        variety = diversity(x, apart_KB.flatten(), noise_BN)
        yield "diversity", -settings.diversity_weight * variety.clamp(max=settings.diversity_cap)


def _labels(distribution_C: Tensor, count: int, draws: torch.Generator) -> Tensor:
    return torch.multinomial(distribution_C, count, replacement=True, generator=draws)
