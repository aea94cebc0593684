"""FedDistill (FD), server half: averages the clients' mean outputs by label; no weights cross.

Source: Jeong et al., arXiv 1811.11479, and FedGen's code; docs/strategies/feddistill.md, equation 2. Client
half: feddistill.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedkd.engine import ClientId, Reply
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training import class_tables
from fedkd.training.class_tables import Tables


@dataclass(frozen=True)
class State:
    """The tables of the last round's clients."""

    tables: Tables


class FedDistill(Strategy[State]):
    needs = frozenset({"class_logits", "label_counts"})
    gives = frozenset({"class_logits", "label_counts"})
    knowledge = "mean outputs by label"
    works_across_students = True
    serves = "personal"
    paper = "Jeong et al., arXiv 1811.11479; FedGen's baseline"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        leave_one_out: bool = False  # a client of the last round gets the mean without its own table; paper: true
        mean: Literal["holders", "examples", "senders"] = "holders"  # of a label; FedGen's code: senders, zeros too

    def init(self, problem: Problem, stream: Stream) -> State:
        return State(Tables())

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        if not len(state.tables.clients):
            return dict.fromkeys(cohort, Payload())
        return class_tables.payloads(
            state.tables,
            cohort,
            self.config.leave_one_out,
            lambda table, counts: Payload(class_logits=table, label_counts=counts),
        )

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        tables = class_tables.gather(replies, self.config.mean)
        return State(tables), class_tables.describe(tables)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None
