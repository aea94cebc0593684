"""FedBN, server half: FedAvg on all entries except for BatchNorm layers, which stay with the clients.

Source: Li et al., ICLR 2021; docs/strategies/fedbn.md, equation 1. Client half: supervised.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.engine import ClientId, Reply
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy
from fedkd.student import Student


@dataclass(frozen=True)
class State:
    """The shared entries, and whether they make a whole student, which is one without BatchNorm."""

    weights: Weights
    is_whole: bool


class FedBN(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights"})
    knowledge = "weights except BatchNorm's"
    serves = "personal"
    paper = "Li et al., ICLR 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        weighting: Literal["examples", "uniform"] = "examples"  # by size of the client's data; authors' code: uniform

    def notes(self, problem: Problem) -> Iterator[str]:
        if not any(batch_norm_entries(problem.of(client).shape) for client in range(problem.clients)):
            yield "the student has no BatchNorm layer that could stay with the clients: what is left is FedAvg"

    def init(self, problem: Problem, stream: Stream) -> State:
        stays = batch_norm_entries(problem.shape)
        entries = problem.shared(problem.initial().weights)
        return State({name: value for name, value in entries.items() if name not in stays}, not stays)

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, Payload(weights=state.weights))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        trust_1K1 = fusion.by_weighting(self.config.weighting, replies)
        return State(fusion.fuse_weights(replies, trust_1K1), state.is_whole), fusion.describe(trust_1K1)

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return None if client is None and not state.is_whole else Payload(weights=state.weights)


def batch_norm_entries(student: Student) -> frozenset[str]:
    """Names of all entries of BatchNorm layers: weights, biases and statistics.

    The rule is the type of the module: a rule on names ("bn") misses the norms of shortcuts and of sequences.
    """
    norms = {path for path, module in student.named_modules() if isinstance(module, _BatchNorm)}
    return frozenset(name for name in student.learnable | student.statistics if name.rpartition(".")[0] in norms)
