"""KnFu (reconstruction), server half: a teacher for each client, fused from the knowledge of similar clients.

Source: Seyedmohammadi et al., arXiv 2403.11892, of which only the abstract was found;
docs/strategies/knfu.md, equations 1 to 5. Client half: knfu.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedkd import state_values
from fedkd.border import checks
from fedkd.engine import ClientId, Job, Reply
from fedkd.errors import ConfigError
from fedkd.maths import affinity, diagnostics
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training import public_set

SAMPLES_AT_ONCE = 64  # for weights by sample: distances take (samples, K, K, C) in memory


@dataclass(frozen=True)
class LastReply:
    """What a client last sent: N transfer samples, C classes."""

    round: int
    logits: Tensor  # (N, C)
    examples: int
    counts: Tensor  # (C,) int64: its label counts; empty unless they are reported


@dataclass(frozen=True)
class State:
    """Between exchanges: teachers. Between rounds: what the configuration needs from earlier rounds."""

    problem: Problem = field(metadata=state_values.CONSTANT)
    round: int  # the last aggregated round
    beta: float | None  # the value chosen in the first round, for beta=auto
    laws: Mapping[int, Tensor]  # by client: its first estimated label distribution, for epd_when=first
    heard: Mapping[int, LastReply]  # by client: for rounds in which it is absent
    teachers: Mapping[int, Tensor]  # by client: log F_k (N, C); equal ones are one tensor


class KnFu(Strategy[State]):
    needs = frozenset({"probe_logits", "label_counts"})
    gives = frozenset({"probe_logits", "numbers"})
    exchanges = 2
    knowledge = "logits on a public set, fused for each client"
    proxy = "yes"
    works_across_students = True
    serves = "personal"
    paper = "reconstruction of Seyedmohammadi et al., arXiv 2403.11892"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        order: Literal["two_phase", "distill_first"] = "two_phase"  # fine-tune at once, or before the next training
        epd: Literal["mean_soft", "argmax_hist", "reported", "class_table"] = (
            "mean_soft"  # a client's label distribution: mean prediction, shares of decisions, counts, means by label
        )
        epd_when: Literal["every", "first"] = "every"  # round; first: before any fine-tuning, then kept
        pseudo_count: Annotated[int, Ge(0), Le(1)] = 0  # added to each reported count
        divergence: Literal["kl", "kl_rev", "js", "l1", "l2", "cos"] = "kl"  # of distributions; kl: receiver || sender
        beta: Annotated[float, Ge(0)] | Literal["inf", "auto"] = 10.0  # paper: 10, of an unknown distance; 0: FedMD
        beta_senders: Annotated[float, Ge(1)] = 3.0  # mean effective senders that beta=auto aims at, in round 1
        include_self: bool = True  # whether a client's own knowledge is part of its teacher
        size_prior: bool = False  # whether weights also grow with the size of the sender's data
        top_m: Annotated[int, Ge(1)] | None = None  # only this many nearest senders count; null: all
        min_samples: Annotated[int, Ge(0)] = 0  # a client with fewer samples receives, but is not a source
        stale: Annotated[int, Ge(0)] = 0  # rounds for which an absent client's knowledge still counts
        weight_level: Literal["client", "sample"] = "client"  # one weight per pair, or per pair and transfer sample
        fuse: Literal["prob", "logit"] = "prob"  # mean of probabilities, or of logits
        temperature: Annotated[float, Gt(0)] = 1.0  # of teacher and student; label distributions stay at 1
        fine_tune_ce: Literal["none", "private", "transfer"] = "none"  # cross entropy on private or public labels too

    def init(self, problem: Problem, stream: Stream) -> State:
        wants_labels = self.config.fine_tune_ce == "transfer" or self.config.epd == "class_table"
        if wants_labels and not public_set.required(problem).is_labelled:
            key = "fine_tune_ce" if self.config.fine_tune_ce == "transfer" else "epd"
            raise ConfigError(
                f"strategy.{key} = {getattr(self.config, key)} needs labels, "
                f"and proxy={public_set.required(problem).name} has none",
                where=f"strategy.{key}",
                mend="use proxy=held-out or proxy=unused",
            )
        return State(problem, 0, None, {}, {}, {})

    def num_exchanges(self, round: int) -> int:
        return 1 if self.config.order == "distill_first" else self.exchanges

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        if cohort.exchange == 1:
            return frozenset()
        return frozenset({"probe_logits", "label_counts"} if self.config.epd == "reported" else {"probe_logits"})

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        numbers = public_set.describe(state.problem, public_set.size(state.problem))
        without = Payload(numbers=numbers)
        distinct = {id(teacher): teacher for teacher in state.teachers.values()}
        payloads = {key: Payload(probe_logits=teacher, numbers=numbers) for key, teacher in distinct.items()}
        return {client: payloads.get(id(state.teachers.get(client)), without) for client in cohort}

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        checks.check_rows(reply, public_set.size(state.problem))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        if replies[0].exchange == 1:  # these clients have taken their teachers
            return replace(state, teachers={}), {}
        latest = self._heard(state, replies)
        logits_KNC = torch.stack([last.logits for last in latest.values()]).double()
        distributions = self._laws(state, latest, logits_KNC)
        D_KK = self._distance(state, torch.stack([distributions[client] for client in latest]), logits_KNC)
        rule = self._rule(latest)
        beta = self._beta(state, D_KK, rule)
        rows = torch.tensor([list(latest).index(reply.client) for reply in replies])
        W_RK = affinity.weights(D_KK, beta, **rule)[..., rows, :]
        fused_RNC, own_RNC = self._fused(W_RK, logits_KNC), logits_KNC[rows].softmax(-1)
        fresh = affinity.teachers([reply.client for reply in replies], W_RK, fused_RNC)
        after = State(
            problem=state.problem,
            round=replies[0].round,
            beta=beta if self.config.beta == "auto" else None,
            laws=distributions if self.config.epd_when == "first" else {},
            heard=latest if self.config.stale else {},
            teachers=waiting(state, replies) | fresh,
        )
        chosen = {"beta": beta} if self.config.beta == "auto" else {}
        against = against_own(state.problem, W_RK, own_RNC, fused_RNC)
        return after, {**affinity.describe(W_RK, rows), **chosen, **against}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None  # each client has a student of its own

    def _heard(self, state: State, replies: Sequence[Reply]) -> dict[int, LastReply]:
        """The replies that count now, in order of client: new ones, and recent ones of absent clients."""
        now = replies[0].round
        recent = {client: last for client, last in state.heard.items() if now - last.round <= self.config.stale}
        fresh = {reply.client: of_reply(reply) for reply in replies}
        return dict(sorted((recent | fresh).items()))

    def _laws(self, state: State, latest: Mapping[int, LastReply], logits_KNC: Tensor) -> dict[int, Tensor]:
        """Each client's estimated label distribution (C,), or its mean predictions by public label (C, C)."""
        if self.config.epd == "mean_soft":
            estimates = affinity.epd(logits_KNC.softmax(-1))
        elif self.config.epd == "argmax_hist":
            estimates = affinity.label_shares(logits_KNC.argmax(-1), logits_KNC.shape[-1])
        elif self.config.epd == "reported":
            counts_KC = torch.stack([last.counts for last in latest.values()])
            estimates = affinity.reported(counts_KC, self.config.pseudo_count)
        else:
            estimates = by_public_label(logits_KNC.softmax(-1), public_set.required(state.problem).samples.y)
        distributions = dict(zip(latest, estimates, strict=True))
        return {**distributions, **state.laws} if self.config.epd_when == "first" else distributions

    def _distance(self, state: State, distributions: Tensor, logits_KNC: Tensor) -> Tensor:
        """D (K, K) between the clients in `heard`, or (N, K, K) if it differs by sample."""
        kind = self.config.divergence
        if self.config.weight_level == "sample":
            parts = logits_KNC.softmax(-1).movedim(1, 0).split(SAMPLES_AT_ONCE)
            return torch.cat([affinity.distance(part, kind) for part in parts])
        if self.config.epd == "class_table":
            labels = public_set.required(state.problem).samples.y
            has_label_C = torch.bincount(labels, minlength=state.problem.classes) > 0
            return affinity.table_distance(distributions, has_label_C.expand(len(distributions), -1), kind)
        return affinity.distance(distributions, kind)

    def _rule(self, latest: Mapping[int, LastReply]) -> dict[str, Any]:
        """Besides the distance, which clients may be sources: arguments of `affinity.weights`."""
        examples_K = torch.tensor([last.examples for last in latest.values()])
        return {
            "include_self": self.config.include_self,
            "prior_K": examples_K if self.config.size_prior else None,
            "top": self.config.top_m,
            "allowed": examples_K >= self.config.min_samples,
        }

    def _beta(self, state: State, D_KK: Tensor, rule: Mapping[str, Any]) -> float:
        if self.config.beta != "auto":
            return float(self.config.beta)
        return affinity.beta_for(D_KK, self.config.beta_senders, **rule) if state.beta is None else state.beta

    def _fused(self, W_RK: Tensor, logits_KNC: Tensor) -> Tensor:
        """F (R, N, C), in float64: probabilities at `temperature` (docs/strategies/knfu.md, equation 5)."""
        if self.config.fuse == "logit":
            return (affinity.mix(W_RK, logits_KNC) / self.config.temperature).softmax(-1)
        return affinity.mix(W_RK, (logits_KNC / self.config.temperature).softmax(-1))


def of_reply(reply: Reply) -> LastReply:
    """The content of a reply, for this and later rounds."""
    logits, counts = reply.payload.probe_logits, reply.payload.label_counts
    assert logits is not None
    return LastReply(reply.round, logits, reply.num_examples, torch.empty(0) if counts is None else counts)


def waiting(state: State, replies: Sequence[Reply]) -> dict[int, Tensor]:
    """Teachers that absent clients have not taken yet (`order: distill_first`)."""
    present = {reply.client for reply in replies}
    return {client: teacher for client, teacher in state.teachers.items() if client not in present}


def by_public_label(probs_KNC: Tensor, y_N: Tensor) -> Tensor:
    """Each client's mean prediction (K, C, C) by true label of the public sample; 0 for labels without one."""
    is_label_CN = (y_N == torch.arange(probs_KNC.shape[-1])[:, None]).double()
    share_CN = is_label_CN / is_label_CN.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("yn,knc->kyc", share_CN, probs_KNC)


def against_own(problem: Problem, W_RK: Tensor, own_RNC: Tensor, fused_RNC: Tensor) -> Findings:
    """How teachers differ from their receivers' own knowledge, over clients with a teacher; only this uses labels."""
    taught_R = W_RK.sum(-1).reshape(-1, len(own_RNC)).amax(0) > 0
    return diagnostics.of_fused(own_RNC[taught_R], fused_RNC[taught_R], public_set.labels(problem))
