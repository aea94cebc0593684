"""FedFuse, server half: fuses the clients' answers on transfer images; per label, it trusts clients that saw the label.

Our own method (docs/strategies/fedfuse.md), as far as we know unpublished. A round has two exchanges: clients train and
answer, then learn from the fused answers. The images are a public set or, without one, drawn by a generator that the
server trains against the clients' students (fedkd/distillation/image_distillation.py). Client half: fedfuse.
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
from fedkd.distillation.image_distillation import ClientModel, Training
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
    """What the server sends in the second exchange. R receivers, or 1 for all; N images, C classes."""

    log_RNC: Tensor  # float32 log-probabilities; meaningless at labels that no client holds
    receivers: tuple[int, ...]
    held_C: Tensor  # int64: 1 where a client holds the label
    images: Weights  # uint8 `x` (N, channels, height, width); empty where the set is public


@dataclass(frozen=True)
class State:
    """Between rounds: a counter and, without a public set, the generator, its optimiser and earlier images."""

    rounds: int  # completed
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
        trust: Literal["counts", "uniform"] = "counts"  # by label counts, or equal for all senders
        trust_cap: Annotated[float, Gt(0), Le(1)] = 1.0  # a sender's largest weight on a label others hold; 1: no cap
        beta: Annotated[float, Ge(0), Le(1e6)] = 0.0  # KnFu's filter of distant senders; 0: one teacher for all
        prior_free: bool = True  # students learn CE(z + log pi, y), so that z holds no label prior; else CE(z, y)
        smoothing: Annotated[float, Gt(0)] = 1.0  # a of pi = (n_y + a) / (n + a C)
        images: Annotated[int, Ge(2)] = 2000  # generated per round
        pool: Annotated[int, Ge(0)] = 0  # earlier rounds whose images are mixed in; 0: only new images
        generator_steps: Annotated[int, Ge(0)] = 150  # per round
        generator_batch: Annotated[int, Ge(2)] = 64  # images that each drawn student classifies per step
        generator_clients: Annotated[int, Ge(1)] = 3  # students drawn per step
        generator_lr: Annotated[float, Gt(0)] = 2e-3  # of Adam with betas 0.5 and 0.999
        noise: Annotated[int, Ge(1)] = 64  # width of the generator's noise
        statistics_weight: Annotated[float, Ge(0)] = 0.3  # of the term on the students' BatchNorm statistics; 0 = off
        diversity_weight: Annotated[float, Ge(0)] = 2.0  # of variety within a label; 0 = off
        diversity_cap: Annotated[float, Gt(0)] = 0.35  # variety above it is not rewarded
        least_variation: Annotated[float, Ge(0)] = 0.05  # answers that vary less: the generator has collapsed

    def init(self, problem: Problem, stream: Stream) -> State:
        if self.config.transfer == "proxy" and problem.proxy is None:
            raise ConfigError(
                "strategy.transfer = proxy needs a public set of samples, and proxy is none",
                where="strategy.transfer",
                mend="use proxy=held-out or a foreign source, or transfer=generated",
            )
        adam = {"step": 0, "mean": {}, "square": {}}
        generator: Weights = {}
        if self._generates(problem):
            _check_images(problem)
            sizes = {"noise": self.config.noise, "classes": problem.classes}
            generator = image_generators.init(stream.child("generator"), **sizes, shape=problem.input_shape)
        return State(0, generator, adam, {}, None, problem)

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        """All kinds in the first exchange; kinds that the transfer set does not need are empty."""
        return self.needs if cohort.exchange == 0 else frozenset()

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        numbers, knowledge = self._public_set(state.problem), state.knowledge
        if cohort.exchange == 0 or knowledge is None:
            return dict.fromkeys(cohort, Payload(numbers=numbers))
        payloads = [
            Payload(
                probe_logits=log_NC, label_counts=knowledge.held_C, samples=knowledge.images or None, numbers=numbers
            )
            for log_NC in knowledge.log_RNC
        ]
        if len(payloads) == 1:
            return dict.fromkeys(cohort, payloads[0])
        return {client: payloads[knowledge.receivers.index(client)] for client in cohort}

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
        counts_KC = fusion.stacked(replies, "label_counts")
        if not self._generates(state.problem):
            logits_KNC = fusion.stacked(replies, "probe_logits")
            knowledge, findings = self._fuse(state.problem, replies, logits_KNC, counts_KC)
            return replace(state, knowledge=knowledge), findings
        if not bool(counts_KC.any()):
            return state, {"skipped": 1.0}  # no client reports a label: there is no label to draw images of
        return self._generate(state, replies, counts_KC, stream)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None  # each client classifies with its own student

    def _generates(self, problem: Problem) -> bool:
        if self.config.transfer == "auto":
            return problem.proxy is None
        return self.config.transfer == "generated"

    def _public_set(self, problem: Problem) -> dict[str, float] | None:
        """Identifies the public images; None if images are generated."""
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
        """Each receiver's target from all answers, without images: `_generate` adds those that it drew."""
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
        knowledge = Knowledge(log_RNC, tuple(reply.client for reply in replies), held_C.long(), {})
        if y_N is None:
            y_N = public_set.labels(problem)
        findings: dict[str, Any] = {
            **fusion.describe(trust_RKC[:, :, held_C]),
            **diagnostics.of_fused(log_KNC.exp(), fused_RNC, y_N),
        }
        if config.beta:
            trust_RK = trust_RKC[:, :, held_C].mean(2)
            findings["trust"] = [[round(value, DIGITS) for value in row] for row in trust_RK.tolist()]
        return knowledge, findings

    def _generate(
        self, state: State, replies: Sequence[Reply], counts_KC: Tensor, stream: Stream
    ) -> tuple[State, dict[str, Any]]:
        """Trains the generator for this round, draws images, and fuses the predictions of the clients' students."""
        config, problem = self.config, state.problem
        models = self._client_models(problem, replies, counts_KC)
        holders = [model for model, holds in zip(models, counts_KC.sum(1) > 0, strict=True) if holds]
        draws, settings = stream.child("generator"), self._training()
        trained, terms = image_distillation.train(problem, state.generator, state.adam, holders, settings, draws)
        y_N = image_distillation.balanced(counts_KC.sum(0) > 0, config.images)
        x = image_distillation.draw_images(trained.generator, y_N, config.noise, problem, stream.child("images"))
        x, y_N, pool = self._mix(state.pool, x, y_N, stream.child("pool"))
        logits_KNC = image_distillation.predict(problem, models, x)
        knowledge, findings = self._fuse(problem, replies, logits_KNC, counts_KC, y_N)
        assert knowledge is not None  # at least one client holds a label
        quality = image_distillation.describe(x, y_N, logits_KNC.log_softmax(2), knowledge.log_RNC)
        collapsed = quality["variation"] < config.least_variation
        after = replace(
            state,
            generator=trained.generator,
            adam=trained.adam,
            pool=pool,
            knowledge=None if collapsed else replace(knowledge, images={"x": x}),
        )
        return after, {**findings, **terms, **quality, "collapsed": float(collapsed)}

    def _client_models(self, problem: Problem, replies: Sequence[Reply], counts_KC: Tensor) -> list[ClientModel]:
        """The clients' students, each with its label distribution, restricted to labels that some client holds."""
        held_C, models = counts_KC.sum(0) > 0, []
        for reply, counts_C in zip(replies, counts_KC, strict=True):
            log_prior_C = fusion.log_prior(counts_C, self.config.smoothing)
            share_C = log_prior_C.double().exp() * held_C
            entries = {name: entry[0] for name, entry in (reply.payload.samples or {}).items()}
            prior_C = log_prior_C if self.config.prior_free else torch.zeros_like(log_prior_C)
            models.append(ClientModel(problem.architecture(reply.client), entries, share_C / share_C.sum(), prior_C))
        return models

    def _mix(self, pool: Weights, x: Tensor, y_N: Tensor, stream: Stream) -> tuple[Tensor, Tensor, Weights]:
        """The round's images, drawn from new images and the pool, their labels, and the next round's pool."""
        if not self.config.pool:
            return x, y_N, {}
        all_x, all_y = (torch.cat([pool[k], new]) if pool else new for k, new in (("x", x), ("y", y_N)))
        chosen = torch.randperm(len(all_y), generator=stream.torch())[: len(y_N)].sort().values
        keep = self.config.pool * len(y_N)
        return all_x[chosen], all_y[chosen], {"x": all_x[-keep:].clone(), "y": all_y[-keep:].clone()}

    def _training(self) -> Training:
        config = self.config
        return Training(
            steps=config.generator_steps,
            batch=config.generator_batch,
            clients=config.generator_clients,
            lr=config.generator_lr,
            noise=config.noise,
            statistics_weight=config.statistics_weight,
            diversity_weight=config.diversity_weight,
            diversity_cap=config.diversity_cap,
        )


def _check_images(problem: Problem) -> None:
    """Raises ConfigError if the samples are no images, which is all that the generator makes."""
    if len(problem.input_shape) != 3:
        what = f"fedfuse generates images, and these samples have shape {list(problem.input_shape)}"
        mend = "give it a public set (proxy=held-out), or choose a strategy that exchanges latents: fedgen, knfu"
        raise ConfigError(what, where="strategy.transfer", mend=mend)
