"""FedProto, server half: averages the clients' mean latents by label; no weights cross.

Source: Tan et al., AAAI 2022, equation 6 with weights that sum to 1. Client half: fedproto.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedkd.engine import ClientId, Reply
from fedkd.errors import ConfigError
from fedkd.maths import fusion
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training import class_tables


@dataclass(frozen=True)
class State:
    """One prototype per label, and how many samples or clients it averages; 0: no client has sent one."""

    prototypes: Tensor  # (C, d)
    counts: Tensor  # (C,) int64


class FedProto(Strategy[State]):
    needs = frozenset({"prototypes", "label_counts"})
    gives = frozenset({"prototypes", "label_counts"})
    knowledge = "mean latents by label"
    works_across_students = True
    serves = "personal"
    paper = "Tan et al., AAAI 2022"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        aggregation: Literal["examples", "uniform"] = "examples"  # over holders, by their samples; code: uniform

    def init(self, problem: Problem, stream: Stream) -> State:
        widths = {problem.architecture(client): problem.of(client).latent for client in range(problem.clients)}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} has {width}" for name, width in sorted(widths.items()))
            raise ConfigError(
                f"fedproto compares latents, and the students differ in the width of the latent: {listed}",
                where="students.mix",
                mend="mix students whose latents are equally wide",
            )
        (width,) = set(widths.values())
        return State(torch.zeros(problem.classes, width), torch.zeros(problem.classes, dtype=torch.int64))

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, self._payload(state))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        """A label that no client of this round has keeps its earlier prototype."""
        sent_KCd = fusion.stacked(replies, "prototypes")
        counts_KC = fusion.stacked(replies, "label_counts")
        rule: class_tables.Mean = "examples" if self.config.aggregation == "examples" else "holders"
        fresh_Cd, weight_C = class_tables.combine(sent_KCd, class_tables.weigh(counts_KC, rule))
        is_fresh_C = weight_C > 0
        after = State(
            torch.where(is_fresh_C[:, None], fresh_Cd, state.prototypes),
            torch.where(is_fresh_C, weight_C, state.counts),
        )
        return after, self._describe(after, sent_KCd, counts_KC)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None if client is None else self._payload(state)

    def _payload(self, state: State) -> Payload:
        if not bool(state.counts.any()):
            return Payload()
        return Payload(prototypes=state.prototypes, label_counts=state.counts)

    def _describe(self, after: State, sent_KCd: Tensor, counts_KC: Tensor) -> Findings:
        """How many labels have a prototype, and the mean distance of the clients' prototypes to these."""
        distance_KC = (sent_KCd - after.prototypes).norm(dim=2).double()
        held_KC = counts_KC > 0
        spread = float(distance_KC[held_KC].mean()) if bool(held_KC.any()) else 0.0
        return {"labels_known": float((after.counts > 0).sum()), "prototype_spread": spread}
