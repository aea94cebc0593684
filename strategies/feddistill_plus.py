"""FedDistill+, server half: FedDistill that also averages weights.

Source: FedGen's code, where it is called FedDistill-FL; docs/strategies/feddistill.md. Client half: feddistill.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedkd.engine import ClientId, Reply
from fedkd.maths import fusion
from fedkd.payload import Findings, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.training import class_tables
from fedkd.training.class_tables import Tables


@dataclass(frozen=True)
class State:
    """The global entries, and the tables of the last round's clients."""

    weights: Weights
    tables: Tables


class FedDistillPlus(Strategy[State]):
    needs = frozenset({"weights", "class_logits", "label_counts"})
    gives = frozenset({"weights", "class_logits", "label_counts"})
    knowledge = "weights, mean outputs by label"
    paper = "FedGen's baseline (Zhu, Hong, Zhou, ICML 2021)"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        share: Literal["all", "head"] = "all"  # which weights travel; the rest stays with each client
        weighting: Literal["examples", "uniform"] = "examples"  # of weights: by size of the client's data, or equal
        leave_one_out: bool = False  # a client of the last round gets the mean without its own table
        mean: Literal["holders", "examples", "senders"] = "holders"  # of a label; FedGen's code: senders, zeros too

    def init(self, problem: Problem, stream: Stream) -> State:
        return State(problem.shared(problem.initial().weights, self.config.share), Tables())

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        if not len(state.tables.clients):
            return dict.fromkeys(cohort, Payload(weights=state.weights))
        return class_tables.payloads(
            state.tables,
            cohort,
            self.config.leave_one_out,
            lambda table, counts: Payload(weights=state.weights, class_logits=table, label_counts=counts),
        )

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Findings]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        tables = class_tables.gather(replies, self.config.mean)
        after = State(fusion.fuse_weights(replies, trust_1K1), tables)
        return after, {**fusion.describe(trust_1K1), **class_tables.describe(tables)}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        is_partial = client is None and self.config.share == "head"
        return None if is_partial else Payload(weights=state.weights)
