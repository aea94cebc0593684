"""KnFu without a public set, server half: generated latents take the place of the public images.

Our design (docs/strategies/knfu-generated.md) on what is known of Seyedmohammadi et al., arXiv 2403.11892, with
FedGen's generator (Zhu et al., ICML 2021): nothing of it is in the paper. Client half: knfu-generated.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedkd.distillation import loop
from fedkd.engine import ClientId, Reply
from fedkd.errors import ConfigError
from fedkd.maths import affinity, diagnostics, fusion, losses
from fedkd.models import generators
from fedkd.payload import Findings, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy

COMPARED = 200  # latents that are compared pairwise to detect a collapsed generator


@dataclass(frozen=True)
class State:
    """Each client's head, the generator with its optimiser's memory, and the next round's latents and teachers."""

    first: Weights  # the head that all clients start from
    heads: Mapping[int, Weights]  # by client that has replied; the server holds the only copy
    generator: Weights
    adam: Mapping[str, Any]
    labels_seen: Tensor  # (C,) int64: labels drawn so far by all clients
    latents: Weights  # "z" (N, d) and "y" (N,), in place of a public set; empty before the first round
    teachers: Mapping[int, Tensor]  # by client: log F_k (N, C); equal ones are one tensor
    round: int  # rounds aggregated


class KnFuGenerated(Strategy[State]):
    needs = frozenset({"weights", "label_counts"})
    gives = frozenset({"weights", "samples", "probe_logits"})
    knowledge = "heads; generated latents and what they mean, fused for each client"
    works_across_students = True
    serves = "personal"
    paper = "our data-free form of Seyedmohammadi et al., arXiv 2403.11892"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        divergence: Literal["kl", "kl_rev", "js", "l1", "l2", "cos"] = "kl"  # kl: receiver || sender
        beta: Annotated[float, Ge(0)] | Literal["inf"] = 10.0  # paper: 10, of an unknown distance; 0: all equal
        include_self: bool = True  # whether a client's own head is part of its teacher
        top_m: Annotated[int, Ge(1)] | None = None  # only this many nearest senders count; null: all
        temperature: Annotated[float, Gt(0)] = 1.0  # of teacher and student
        latents: Annotated[int, Ge(1)] = 1000  # generated per round, equally many of each label seen so far
        least_variety: Annotated[float, Ge(0), Le(1)] = 0.05  # total variation below which the generator has collapsed
        noise: Annotated[int, Ge(1)] = 32  # width of the generator's noise
        hidden: Annotated[int, Ge(1)] = 256  # width of the generator's hidden layer
        generator_steps: Annotated[int, Ge(0)] = 50  # per round
        generator_batch: Annotated[int, Ge(2)] = 32  # latents per step
        generator_lr: Annotated[float, Gt(0)] = 3e-4  # Adam's
        generator_weight_decay: Annotated[float, Ge(0)] = 1e-2  # classical L2
        diversity_weight: Annotated[float, Ge(0)] = 1.0  # of the term that makes latents vary with the noise; 0 = off

    def init(self, problem: Problem, stream: Stream) -> State:
        widths = {name: problem.alike(name).latent for name in problem.architectures}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise ConfigError(
                f"knfu-generated needs students of equal latent width, got {listed}",
                where="students.mix",
                mend="choose students of one latent width, or strategy=knfu-table",
            )
        config, width = self.config, next(iter(widths.values()))
        generator = generators.init(
            stream.child("generator"), noise=config.noise, hidden=config.hidden, latent=width, classes=problem.classes
        )
        member = 0 if problem.assigned else None
        first = problem.of(member).shared(problem.initial(member).weights, "head")
        seen = torch.zeros(problem.classes, dtype=torch.int64)
        return State(first, {}, generator, {"step": 0, "mean": {}, "square": {}}, seen, {}, {}, 0)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        """The server also sends each head: it has the heads anyway, and all start equal for any student."""
        new = Payload(weights=state.first)
        payloads = {}
        for client in cohort:
            head, teacher = state.heads.get(client), state.teachers.get(client)
            if head is None:
                payloads[client] = new
            elif teacher is None:
                payloads[client] = Payload(weights=head)
            else:
                payloads[client] = Payload(weights=head, samples=state.latents, probe_logits=teacher)
        return payloads

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        counts_KC = fusion.stacked(replies, "label_counts")
        seen = state.labels_seen + counts_KC.sum(0)
        fresh = {reply.client: reply.payload.weights for reply in replies if reply.payload.weights is not None}
        heads = dict(sorted({**state.heads, **fresh}.items()))
        generator, adam, terms = self._train_generator(state, stack(list(fresh.values())), counts_KC, stream)
        latents = self._generate(generator, seen, stream)
        logits_KNC = head_logits(stack(list(heads.values())), latents["z"]).double()
        is_here_K = torch.tensor([client in fresh for client in heads])
        W_KK, findings = self._weights(logits_KNC.softmax(-1), is_here_K)
        fused_KNC = affinity.mix(W_KK, (logits_KNC / self.config.temperature).softmax(-1))
        is_taught = int((seen > 0).sum()) > 1
        after = State(
            first=state.first,
            heads=heads,
            generator=generator,
            adam=adam,
            labels_seen=seen,
            latents=latents,
            teachers=affinity.teachers(list(heads), W_KK, fused_KNC) if is_taught else {},
            round=replies[0].round,
        )
        return after, {**findings, **terms, **measure(latents, logits_KNC.softmax(-1), fused_KNC, W_KK)}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None if client is None else Payload(weights=state.heads.get(client, state.first))

    def _weights(self, probs_KNC: Tensor, is_here_K: Tensor) -> tuple[Tensor, Findings]:
        """W (K, K) with this round's clients as sources. With a collapsed generator, each client is its own source."""
        config = self.config
        D_KK = affinity.distance(affinity.epd(probs_KNC), config.divergence)
        beta = math.inf if config.beta == "inf" else config.beta
        W_KK = affinity.weights(D_KK, beta, include_self=config.include_self, top=config.top_m, allowed=is_here_K)
        spread = variety(probs_KNC[:, :COMPARED])
        if spread < config.least_variety:
            W_KK = torch.eye(len(D_KK), dtype=W_KK.dtype)
        return W_KK, {**affinity.describe(W_KK, torch.arange(len(D_KK))), "head_variety": spread}

    def _generate(self, generator: Weights, seen_C: Tensor, stream: Stream) -> Weights:
        """Latents and their labels, equally many of each label seen so far."""
        draws = stream.child("latents").torch()
        labels = seen_C.nonzero().flatten() if bool(seen_C.any()) else torch.arange(len(seen_C))
        y_N = labels[torch.arange(self.config.latents) % len(labels)]
        noise_N = generators.draw_noise((len(y_N), self.config.noise), draws)
        return {"z": generators.generate(generator, y_N, noise_N), "y": y_N}

    def _train_generator(
        self, state: State, heads: tuple[Tensor, Tensor], counts_KC: Tensor, stream: Stream
    ) -> tuple[Weights, Mapping[str, Any], Findings]:
        """Train FedGen's generator: heads, trusted by label, must recognise its latents, and noise must spread them."""
        config, draws = self.config, stream.child("generator").torch()
        trust_KC = fusion.by_label_counts(counts_KC.clamp(min=1))[0]
        drawn_C = counts_KC.sum(0) > 0
        labels_C = drawn_C.double() if bool(drawn_C.any()) else torch.ones(len(drawn_C), dtype=torch.float64)

        def terms(entries: Weights) -> Iterator[tuple[str, Tensor]]:
            y_B, noise_B = generators.draw_inputs(labels_C, config.generator_batch, config.noise, draws)
            z_Bd = generators.generate(entries, y_B, noise_B, training=True)
            yield "teacher", losses.ensemble_cross_entropy(head_logits(heads, z_Bd), y_B, trust_KC)
            if config.diversity_weight:
                yield "diversity", config.diversity_weight * losses.diversity(noise_B, z_Bd)

        trained = loop.optimise(
            state.generator,
            state.adam,
            terms,
            steps=config.generator_steps,
            lr=config.generator_lr,
            weight_decay=config.generator_weight_decay,
        )
        return trained.generator, trained.adam, {n: value for n, value in trained.means().items() if n == "teacher"}


def stack(heads: Sequence[Weights]) -> tuple[Tensor, Tensor]:
    """Heads side by side: (K, C, d) and (K, C)."""
    return torch.stack([h["head.weight"] for h in heads]), torch.stack([h["head.bias"] for h in heads])


def head_logits(heads: tuple[Tensor, Tensor], z_Nd: Tensor) -> Tensor:
    """Logits (K, N, C) of every head on every latent."""
    weight_KCd, bias_KC = heads
    return torch.baddbmm(bias_KC[:, None], z_Nd.expand(len(weight_KCd), -1, -1), weight_KCd.mT)


def variety(probs_KNC: Tensor) -> float:
    """Mean total variation between a head's predictions on two latents; 0: a collapsed generator."""
    samples = probs_KNC.shape[1]
    if samples < 2:
        return 0.0
    pairs = torch.cdist(probs_KNC, probs_KNC, p=1.0).sum((1, 2)) / 2
    return float((pairs / (samples * (samples - 1))).mean())


def measure(latents: Weights, own_KNC: Tensor, fused_KNC: Tensor, W_KK: Tensor) -> Findings:
    """Compares latents with their labels, and teachers with own heads, over clients with a teacher."""
    taught_K = W_KK.sum(1) > 0
    generated = diagnostics.of_generated(latents["z"], latents["y"], own_KNC.mean(0))
    return {**generated, **diagnostics.of_fused(own_KNC[taught_K], fused_KNC[taught_K], latents["y"])}
