"""FedMD, server half: the mean of the clients' logits on public images; no weights cross.

Source: Li and Wang, arXiv 1910.03581, and the authors' code; docs/strategies/fedmd.md, equation 1. Client half: fedmd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from fedkd import state_values
from fedkd.border import checks
from fedkd.engine import ClientId, Job, Reply
from fedkd.errors import ConfigError
from fedkd.maths import diagnostics, fusion
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training import public_set


@dataclass(frozen=True)
class State:
    """The mean logits (N, C) of the last round's clients; empty before the first round."""

    problem: Problem = field(metadata=state_values.CONSTANT)
    consensus: Tensor


class FedMD(Strategy[State]):
    needs = frozenset({"probe_logits"})
    gives = frozenset({"probe_logits", "numbers"})
    exchanges = 2
    knowledge = "mean logits on public images"
    proxy = "yes"
    works_across_students = True
    serves = "personal"
    paper = "Li and Wang, arXiv 1910.03581"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        public_size: Annotated[int, Ge(1)] = 500  # public images per round, chosen afresh; at most all. Paper: 5000
        public_epochs: Annotated[int, Ge(0)] = 0  # on the public set, before a client's first round; 0: none. Paper: 20
        private_epochs: Annotated[int, Ge(0)] = 0  # then on the client's own data; 0: none. Paper: 25

    def init(self, problem: Problem, stream: Stream) -> State:
        proxy = public_set.required(problem)
        if self.config.public_epochs and not proxy.is_labelled:
            raise ConfigError(
                f"strategy.public_epochs = {self.config.public_epochs} needs labels, and proxy={proxy.name} has none",
                where="strategy.public_epochs",
                mend="use proxy=held-out or proxy=unused, or strategy.public_epochs=0",
            )
        return State(problem, torch.empty(0))

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        return self.needs if cohort.exchange == 0 else frozenset()

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        numbers = public_set.describe(state.problem, self._size(state))
        consensus = state.consensus if cohort.exchange else None
        return dict.fromkeys(cohort, Payload(probe_logits=consensus, numbers=numbers))

    def inspect(self, state: State, job: Job, reply: Reply) -> None:
        checks.check_rows(reply, self._size(state))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        if replies[0].exchange == 1:
            return state, {}
        logits_KNC = fusion.stacked(replies, "probe_logits")
        mean_NC = logits_KNC.double().mean(0)
        y_N = public_set.labels(state.problem, public_set.part(state.problem, self._size(state), replies[0].round))
        findings = diagnostics.of_fused(logits_KNC.softmax(2), mean_NC.softmax(1)[None], y_N)
        return replace(state, consensus=mean_NC.float()), findings

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None

    def _size(self, state: State) -> int:
        return public_set.size(state.problem, self.config.public_size)
