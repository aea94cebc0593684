"""FedGen, server half: averages weights and trains a generator of latents against the clients' heads.

Source: Zhu, Hong, Zhou, ICML 2021, and the authors' code; docs/strategies/fedgen.md, equations 1 to 5. Client half:
fedgen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedkd.distillation import loop
from fedkd.engine import ClientId, Reply
from fedkd.errors import ConfigError
from fedkd.maths import fusion, losses
from fedkd.models import generators
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy

FIDELITY_SAMPLES = 256  # latents on which the ledger's fidelity is measured


@dataclass(frozen=True)
class State:
    """Global entries, generator, its optimiser's memory, and how often clients drew each label so far, (C,) int64."""

    weights: Weights
    generator: Weights
    adam: Mapping[str, Any]
    labels_seen: Tensor
    round: int  # rounds aggregated


@dataclass(frozen=True)
class Heads:
    """The clients' heads side by side: K clients, C classes, d latent width."""

    weight_KCd: Tensor
    bias_KC: Tensor
    trust_KC: Tensor  # W of docs/strategies/fedgen.md, equation 2: columns sum to 1

    def logits(self, z_Bd: Tensor) -> Tensor:
        """Logits of every head on every latent, (K, B, C)."""
        return torch.baddbmm(self.bias_KC[:, None], z_Bd.expand(len(self.weight_KCd), -1, -1), self.weight_KCd.mT)


class FedGen(Strategy[State]):
    needs = frozenset({"weights", "label_counts"})
    gives = frozenset({"weights", "generator", "label_counts"})
    knowledge = "weights, and a generator of latents"
    paper = "Zhu, Hong, Zhou, ICML 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        share: Literal["all", "head"] = "all"  # what travels: all entries, or only the prediction layer
        weighting: Literal["examples", "uniform"] = "examples"  # of the average; paper: uniform
        noise: Annotated[int, Ge(1)] = 32  # width of the generator's noise
        hidden: Annotated[int, Ge(1)] = 256  # width of the generator's hidden layer
        noise_law: Literal["uniform", "normal"] = "uniform"  # U[0, 1) as in the code; paper: N(0, 1)
        warmup_rounds: Annotated[int, Ge(0)] = 1  # first rounds without generator at the clients; paper: 0
        generator_steps: Annotated[int, Ge(0)] = 50  # per round; paper's Algorithm 1: 1
        generator_batch: Annotated[int, Ge(2)] = 32  # latents per step
        generator_lr: Annotated[float, Gt(0)] = 3e-4  # Adam's
        generator_decay: Annotated[float, Gt(0), Le(1)] = 0.98  # factor on the learning rate per round
        generator_weight_decay: Annotated[float, Ge(0)] = 1e-2  # classical L2
        generator_labels: Literal["uniform", "proportional"] = "uniform"  # over labels drawn; paper: by count
        teacher: Literal["per_label", "per_client", "mean_logits"] = "per_label"  # code's slip; Eq. 4
        teacher_weight: Annotated[float, Ge(0)] = 1.0  # a
        student_weight: Annotated[float, Ge(0)] = 0.0  # b, adversarial; 0 everywhere in the code
        diversity_weight: Annotated[float, Ge(0)] = 1.0  # e

    def init(self, problem: Problem, stream: Stream) -> State:
        weights = problem.initial().weights
        if "head.weight" not in weights or "head.bias" not in weights:
            raise ConfigError("fedgen needs a student whose head is a linear layer", where="students")
        config = self.config
        generator = generators.init(
            stream.child("generator"),
            noise=config.noise,
            hidden=config.hidden,
            latent=problem.latent,
            classes=problem.classes,
        )
        seen = torch.zeros(problem.classes, dtype=torch.int64)
        return State(problem.shared(weights, config.share), generator, {"step": 0, "mean": {}, "square": {}}, seen, 0)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        if cohort.round <= self.config.warmup_rounds or not bool(state.labels_seen.any()):
            return dict.fromkeys(cohort, Payload(weights=state.weights))
        payload = Payload(weights=state.weights, generator=state.generator, label_counts=state.labels_seen)
        return dict.fromkeys(cohort, payload)

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        counts_KC = stack_counts(replies)
        heads = stack_heads(replies, counts_KC)
        generator, adam, numbers = self._train_generator(state, heads, counts_KC, stream)
        after = State(
            weights=fusion.fuse_weights(replies, fusion.by_weighting(self.config.weighting, replies)),
            generator=generator,
            adam=adam,
            labels_seen=state.labels_seen + (counts_KC - 1).sum(0),
            round=state.round + 1,
        )
        return after, {**fusion.describe(heads.trust_KC[None]), **numbers}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        is_partial = client is None and self.config.share == "head"
        return None if is_partial else Payload(weights=state.weights)

    def _train_generator(
        self, state: State, heads: Heads, counts_KC: Tensor, stream: Stream
    ) -> tuple[Weights, Mapping[str, Any], Numbers]:
        """Adam on the generator; heads are constant. Returns generator, moments, and mean terms of the last steps."""
        config, draws = self.config, stream.child("generator").torch()
        labels_C = label_distribution(counts_KC, config.generator_labels)

        def terms(entries: Weights) -> Iterator[tuple[str, Tensor]]:
            sizes = config.generator_batch, config.noise
            y_B, noise_BN = generators.draw_inputs(labels_C, *sizes, draws, config.noise_law)
            z_Bd = generators.generate(entries, y_B, noise_BN, training=True)
            return self._terms(state, heads, z_Bd, y_B, noise_BN)

        trained = loop.optimise(
            state.generator,
            state.adam,
            terms,
            steps=config.generator_steps,
            lr=config.generator_lr * config.generator_decay**state.round,
            weight_decay=config.generator_weight_decay,
        )
        fidelity = self._fidelity(trained.generator, heads, labels_C, draws)
        return trained.generator, trained.adam, {**trained.means(), **fidelity}

    def _terms(
        self, state: State, heads: Heads, z_Bd: Tensor, y_B: Tensor, noise_BN: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        config = self.config
        logits_KBC = heads.logits(z_Bd)
        if config.teacher_weight:
            yield "teacher", config.teacher_weight * teacher_loss(config.teacher, logits_KBC, y_B, heads.trust_KC)
        if config.student_weight:
            ensemble_BC = (heads.trust_KC[:, y_B, None] * logits_KBC).sum(0).softmax(1)
            student_BC = F.linear(z_Bd, state.weights["head.weight"], state.weights["head.bias"])
            yield "student", -config.student_weight * losses.kl_elementwise(student_BC, ensemble_BC)
        if config.diversity_weight:
            yield "diversity", config.diversity_weight * losses.diversity(noise_BN, z_Bd)

    @torch.no_grad()
    def _fidelity(self, generator: Weights, heads: Heads, labels_C: Tensor, draws: torch.Generator) -> Numbers:
        """How often the clients' heads give a generated latent its label: with trust by label, and with equal trust."""
        config = self.config
        y_B, noise_BN = generators.draw_inputs(labels_C, FIDELITY_SAMPLES, config.noise, draws, config.noise_law)
        right_KB = heads.logits(generators.generate(generator, y_B, noise_BN)).argmax(2) == y_B
        return {
            "fidelity": float((heads.trust_KC[:, y_B] * right_KB).sum(0).mean()),
            "fidelity_all": float(right_KB.float().mean()),
        }


def teacher_loss(form: str, logits_KBC: Tensor, y_B: Tensor, trust_KC: Tensor) -> Tensor:
    """The heads' loss on generated latents, in one of three forms (docs/strategies/fedgen.md, equation 3)."""
    if form == "per_label":
        return losses.ensemble_cross_entropy(logits_KBC, y_B, trust_KC)
    if form == "per_client":
        return losses.ensemble_cross_entropy_per_client(logits_KBC, y_B, trust_KC)
    return losses.mean_logits_cross_entropy(logits_KBC, y_B)


def stack_counts(replies: Sequence[Reply]) -> Tensor:
    """c of W, (K, C) int64: 1 + how often client k drew label y this round; a 0 is read as 1."""
    return fusion.stacked(replies, "label_counts").clamp(min=1)


def stack_heads(replies: Sequence[Reply], counts_KC: Tensor) -> Heads:
    """The clients' heads with W[y, k] = c[k, y] / sum_j c[j, y]."""
    weights = [reply.payload.weights for reply in replies]
    weight_KCd = torch.stack([w["head.weight"] for w in weights if w is not None])
    bias_KC = torch.stack([w["head.bias"] for w in weights if w is not None])
    return Heads(weight_KCd, bias_KC, fusion.by_label_counts(counts_KC)[0])


def label_distribution(counts_KC: Tensor, kind: str) -> Tensor:
    """Probabilities (C,) of the labels drawn this round: uniform or by count; of all labels if none was drawn."""
    drawn_C = (counts_KC - 1).sum(0).double()
    if not bool(drawn_C.any()):
        return torch.full_like(drawn_C, 1 / len(drawn_C))
    return drawn_C / drawn_C.sum() if kind == "proportional" else (drawn_C > 0) / (drawn_C > 0).sum()
