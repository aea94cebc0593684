"""FedFuse, server half: fuses what clients say about transfer images, label by label, trusting who saw the label.

Our own method (docs/strategies/fedfuse.md), not published that we know of. Two exchanges a round: clients train and
answer, then learn from the fused answers. The images are a public set or, without one, drawn by a generator that is
trained against the clients' students (fedkd/distillation/image_distillation.py). Client half: fedfuse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedkd import state_values
from fedkd.border import checks
from fedkd.distillation import image_distillation
from fedkd.distillation.image_distillation import Recipe, Witness
from fedkd.engine import ClientId, Job, Reply
from fedkd.errors import ConfigError
from fedkd.maths import affinity, diagnostics, fusion
from fedkd.models import image_generators
from fedkd.payload import Findings, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training import public_set

DIGITS = 4  # of the numbers in the ledger's lists
FLOOR = -100.0  # nats; less says no more, and no client can forbid a label by a logit of -1e38


@dataclass(frozen=True)
class Knowledge:
    """What goes down in the second exchange. R receivers, or 1 for all; N images, C classes."""

    log_RNC: Tensor  # float32 log-probabilities; meaningless at labels that nobody holds
    receivers: tuple[int, ...]
    held_C: Tensor  # int64: 1 where somebody holds the label
    images: Weights  # uint8 `x` (N, channels, height, width); empty where the set is public


@dataclass(frozen=True)
class State:
    """Between rounds: a counter and, without a public set, the generator, its optimiser and earlier images."""

    rounds: int  # played
    generator: Weights
    adam: Mapping[str, Any]
    pool: Weights  # `x` uint8 and `y` int64 of earlier rounds, oldest first
    knowledge: Knowledge | None  # between the exchanges of a round
    problem: Problem = field(metadata=state_values.CONSTANT)


class FedFuse(Strategy[State]):
    needs = frozenset({"probe_logits", "samples", "label_counts"})
    gives = frozenset({"probe_logits", "samples", "label_counts", "numbers"})
    exchanges = 2
    knowledge = "logits on public or generated images"
    proxy = "optional"
    works_across_students = True
    serves = "personal"
    paper = "no paper: our own method"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        transfer: Literal["auto", "proxy", "generated"] = "auto"  # auto: the public set if there is one
        fuse: Literal["trust_logit", "trust_prob", "confident"] = "trust_logit"  # the rule
        trust: Literal["counts", "uniform"] = "counts"  # by label counts, or all senders alike
        trust_cap: Annotated[float, Gt(0), Le(1)] = 1.0  # the most one sender weighs on a label others hold; 1: no cap
        beta: Annotated[float, Ge(0), Le(1e6)] = 0.0  # KnFu's filter of distant senders; 0: one teacher for all
        prior_free: bool = True  # students learn CE(z + log pi, y), so that z holds no label law; else CE(z, y)
        smoothing: Annotated[float, Gt(0)] = 1.0  # a of pi = (n_y + a) / (n + a C)
        images: Annotated[int, Ge(2)] = 2000  # generated, a round
        pool: Annotated[int, Ge(0)] = 0  # earlier rounds whose images are mixed in; 0: the new ones only
        generator_steps: Annotated[int, Ge(0)] = 150  # a round
        generator_batch: Annotated[int, Ge(2)] = 64  # images a student judges in a step
        generator_clients: Annotated[int, Ge(1)] = 3  # students drawn each step
        generator_lr: Annotated[float, Gt(0)] = 2e-3  # of Adam with betas 0.5 and 0.999
        noise: Annotated[int, Ge(1)] = 64  # width of the generator's noise
        statistics_weight: Annotated[float, Ge(0)] = 0.3  # of the students' BatchNorm statistics; 0: not looked at
        diversity_weight: Annotated[float, Ge(0)] = 2.0  # of variety within a label; 0: none asked for
        diversity_cap: Annotated[float, Gt(0)] = 0.35  # variety above it is not rewarded
        least_variation: Annotated[float, Ge(0)] = 0.05  # answers more alike than that: the generator has collapsed

    def init(self, problem: Problem, stream: Stream) -> State:
        if self.config.transfer == "proxy" and problem.proxy is None:
            raise ConfigError(
                "strategy.transfer = proxy needs a public set of images, and proxy is none",
                where="strategy.transfer",
                mend="say proxy=held-out or a foreign source, or transfer=generated",
            )
        adam = {"step": 0, "mean": {}, "square": {}}
        generator: Weights = {}
        if self._generates(problem):
            sizes = {"noise": self.config.noise, "classes": problem.classes}
            generator = image_generators.init(stream.child("generator"), **sizes, shape=problem.input_shape)
        return State(0, generator, adam, {}, None, problem)

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        """In the first exchange all kinds come, those that the transfer set makes needless without content."""
        return self.needs if cohort.exchange == 0 else frozenset()

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        numbers, known = self._public_set(state.problem), state.knowledge
        if cohort.exchange == 0 or known is None:
            return dict.fromkeys(cohort, Payload(numbers=numbers))
        payloads = [
            Payload(probe_logits=log_NC, label_counts=known.held_C, samples=known.images or None, numbers=numbers)
            for log_NC in known.log_RNC
        ]
        if len(payloads) == 1:
            return dict.fromkeys(cohort, payloads[0])
        return {client: payloads[known.receivers.index(client)] for client in cohort}

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        if job.exchange:
            return
        generates, samples = self._generates(state.problem), reply.payload.samples or {}
        checks.check_rows(reply, 0 if generates else public_set.size(state.problem))
        if generates:
            image_distillation.check_upload(state.problem, job.client, samples)
        elif samples:
            raise checks.Refused("names", f"samples: {len(samples)} entries where none were asked for")

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        if replies[0].exchange:
            return replace(state, rounds=state.rounds + 1, knowledge=None), {}
        counts_KC = torch.stack([r.payload.label_counts for r in replies if r.payload.label_counts is not None])
        if not self._generates(state.problem):
            logits_KNC = torch.stack([r.payload.probe_logits for r in replies if r.payload.probe_logits is not None])
            known, findings = self._fuse(state.problem, replies, logits_KNC, counts_KC)
            return replace(state, knowledge=known), findings
        if not bool(counts_KC.any()):
            return state, {"skipped": 1.0}  # nobody admits to holding anything: there is no label to draw
        return self._generate(state, replies, counts_KC, stream)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None  # each client classifies with its own student

    def _generates(self, problem: Problem) -> bool:
        if self.config.transfer == "auto":
            return problem.proxy is None
        return self.config.transfer == "generated"

    def _public_set(self, problem: Problem) -> dict[str, float] | None:
        """Which public images are meant; None if images are generated."""
        if problem.proxy is None or self._generates(problem):
            return None
        return {"checksum": float(problem.proxy.checksum)}

    def _fuse(
        self,
        problem: Problem,
        replies: Sequence[Reply],
        logits_KNC: Tensor,
        counts_KC: Tensor,
        y_N: Tensor | None = None,
    ) -> tuple[Knowledge | None, dict[str, Any]]:
        """What each receiver is to learn, from answers of all; the images are added by who drew them."""
        config, log_KNC = self.config, logits_KNC.log_softmax(2).clamp(min=FLOOR)
        if config.trust == "uniform":
            counts_KC = torch.ones_like(counts_KC)
        senders_K = counts_KC.sum(1) > 0
        if not bool(senders_K.any()):
            return None, {"skipped": 1.0}
        trust_RKC = fusion.by_holders(counts_KC[senders_K], config.trust_cap)
        if config.beta:
            D_KK = affinity.distance(affinity.epd(log_KNC.exp()), "kl")
            trust_RKC = fusion.with_affinity(trust_RKC, D_KK[:, senders_K], config.beta)
        fused_RNC = fusion.RULES[config.fuse](log_KNC[senders_K], trust_RKC)
        held_C = fusion.held(trust_RKC)[0]
        log_RNC = fused_RNC.clamp(min=torch.finfo(torch.float32).tiny).log()
        known = Knowledge(log_RNC, tuple(reply.client for reply in replies), held_C.long(), {})
        if y_N is None:
            y_N = public_set.labels(problem)
        found: dict[str, Any] = {
            **fusion.describe(trust_RKC[:, :, held_C]),
            **diagnostics.of_fused(log_KNC.exp(), fused_RNC, y_N),
        }
        if config.beta:
            trust_RK = trust_RKC[:, :, held_C].mean(2)
            found["trust"] = [[round(value, DIGITS) for value in row] for row in trust_RK.tolist()]
        return known, found

    def _generate(
        self, state: State, replies: Sequence[Reply], counts_KC: Tensor, stream: Stream
    ) -> tuple[State, dict[str, Any]]:
        """The generator trained for another round, its images, what the clients' students say about them, fused."""
        config, problem = self.config, state.problem
        witnesses = self._witnesses(problem, replies, counts_KC)
        judges = [w for w, holds in zip(witnesses, counts_KC.sum(1) > 0, strict=True) if holds]
        recipe = self._recipe()
        draws = stream.child("generator")
        trained = image_distillation.train(problem, state.generator, state.adam, judges, recipe, draws)
        y_N = image_distillation.balanced(counts_KC.sum(0) > 0, config.images)
        x = image_distillation.draw_images(trained.generator, y_N, config.noise, problem, stream.child("images"))
        x, y_N, pool = self._mix(state.pool, x, y_N, stream.child("pool"))
        logits_KNC = image_distillation.ask(problem, witnesses, x)
        known, found = self._fuse(problem, replies, logits_KNC, counts_KC, y_N)
        assert known is not None  # somebody holds something
        seen = image_distillation.describe(x, y_N, logits_KNC.log_softmax(2), known.log_RNC)
        collapsed = seen["variation"] < config.least_variation
        after = replace(
            state,
            generator=trained.generator,
            adam=trained.adam,
            pool=pool,
            knowledge=None if collapsed else replace(known, images={"x": x}),
        )
        return after, {**found, **trained.numbers, **seen, "collapsed": float(collapsed)}

    def _witnesses(self, problem: Problem, replies: Sequence[Reply], counts_KC: Tensor) -> list[Witness]:
        """The clients' students; asked about labels of their own law, among those that somebody holds."""
        held_C, witnesses = counts_KC.sum(0) > 0, []
        for reply, counts_C in zip(replies, counts_KC, strict=True):
            log_prior_C = fusion.log_prior(counts_C, self.config.smoothing)
            law_C = log_prior_C.double().exp() * held_C
            entries = {name: entry[0] for name, entry in (reply.payload.samples or {}).items()}
            prior_C = log_prior_C if self.config.prior_free else torch.zeros_like(log_prior_C)
            witnesses.append(Witness(problem.architecture(reply.client), entries, law_C / law_C.sum(), prior_C))
        return witnesses

    def _mix(self, pool: Weights, x: Tensor, y_N: Tensor, stream: Stream) -> tuple[Tensor, Tensor, Weights]:
        """As many images, drawn from the new ones and the pool; and the pool for the next round."""
        if not self.config.pool:
            return x, y_N, {}
        all_x, all_y = (torch.cat([pool[k], new]) if pool else new for k, new in (("x", x), ("y", y_N)))
        chosen = torch.randperm(len(all_y), generator=stream.torch())[: len(y_N)].sort().values
        keep = self.config.pool * len(y_N)
        return all_x[chosen], all_y[chosen], {"x": all_x[-keep:].clone(), "y": all_y[-keep:].clone()}

    def _recipe(self) -> Recipe:
        config = self.config
        return Recipe(
            steps=config.generator_steps,
            batch=config.generator_batch,
            witnesses=config.generator_clients,
            lr=config.generator_lr,
            noise=config.noise,
            statistics_weight=config.statistics_weight,
            diversity_weight=config.diversity_weight,
            diversity_cap=config.diversity_cap,
        )
