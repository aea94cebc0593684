"""Flower's own strategies as server halves: FedAvg, its adaptive and momentum variants, and its robust means.

They run through Flower's public hooks. Each round makes a fresh Flower object and restores its memory. The weights
equal Flower's bit for bit, given the same replies in the same order. Client half: any that sends weights.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt

from fedkd.engine import ClientId, Reply
from fedkd.errors import ConfigError
from fedkd.maths import fusion
from fedkd.payload import Numbers, Payload, Weights
from fedkd.problem import Problem
from fedkd.seeds import Stream
from fedkd.strategy import Cohort, Strategy

if TYPE_CHECKING:  # importing flwr takes a second; `fedkd list` must not wait for it
    from flwr.app import ArrayRecord, Message

_KEYWORDS = {  # our name of a hyper-parameter: Flower's names
    "server_lr": ("eta", "server_learning_rate"),
    "server_momentum": ("server_momentum",),
    "beta_1": ("beta_1",),
    "beta_2": ("beta_2",),
    "adaptivity": ("tau",),
    "trim": ("beta",),
    "malicious": ("num_malicious_nodes",),
    "selected": ("num_nodes_to_select",),
}
_MOMENTS = ("m_t", "v_t", "momentum_vector")  # attributes in which Flower's strategies remember past rounds
_OPTIMISERS = frozenset({"FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"})  # step along the mean update


@dataclass(frozen=True)
class State:
    """Global entries, and the memory of Flower's strategy."""

    weights: Weights  # entries that Flower's strategy aggregates, as clients get them
    statistics: Weights  # BatchNorm's, if they are averaged separately
    exact: Weights  # entries of `weights` that Flower holds in another dtype (float64 after its FedAdam), in that dtype
    memory: Mapping[str, Weights]  # moment -> entry -> value


class FlowerStrategy(Strategy[State]):
    needs = frozenset({"weights"})
    gives = frozenset({"weights"})
    paper = "Flower 1.42's own: Beutel et al., arXiv 2007.14390"

    @dataclass(frozen=True, kw_only=True)
    class Config(Strategy.Config):
        algorithm: Literal[
            "FedAvg",
            "FedAvgM",
            "FedAdam",
            "FedYogi",
            "FedAdagrad",
            "FedMedian",
            "FedTrimmedAvg",
            "Krum",
            "MultiKrum",
            "Bulyan",
        ] = "FedAvg"  # a class of flwr.serverapp.strategy
        server_lr: Annotated[float, Gt(0)] | None = None  # Flower's eta; null here and below: Flower's default
        server_momentum: Annotated[float, Ge(0), Lt(1)] | None = None  # FedAvgM; Flower's default 0 is FedAvg
        beta_1: Annotated[float, Ge(0), Lt(1)] | None = None  # FedAdam, FedYogi: decay of the first moment
        beta_2: Annotated[float, Ge(0), Lt(1)] | None = None  # FedAdam, FedYogi: decay of the second moment
        adaptivity: Annotated[float, Gt(0)] | None = None  # Flower's tau, added to the root of the second moment
        trim: Annotated[float, Ge(0), Lt(0.5)] | None = None  # FedTrimmedAvg: fraction cut off at each end
        malicious: Annotated[int, Ge(0)] | None = None  # Krum, MultiKrum, Bulyan: clients that may lie
        selected: Annotated[int, Ge(1)] | None = None  # MultiKrum: clients that are averaged
        statistics: Literal["average", "optimise"] = "average"  # BatchNorm's; optimise as Flower: can turn negative

    def notes(self, problem: Problem) -> Iterator[str]:
        chosen = self.config
        if chosen.algorithm == "FedAvgM" and not chosen.server_momentum:
            yield "strategy.server_momentum is 0: what is left is Flower's FedAvg"
        if chosen.algorithm == "FedTrimmedAvg" and chosen.trim == 0:
            yield "strategy.trim = 0 trims nothing: what is left is the plain mean"

    def init(self, problem: Problem, stream: Stream) -> State:
        _make(self.config)
        entries = problem.shared(problem.initial().weights)
        is_beside = self.config.algorithm in _OPTIMISERS and self.config.statistics == "average"
        beside = set(problem.statistic_names) if is_beside else set()
        return State(
            weights={name: value for name, value in entries.items() if name not in beside},
            statistics={name: value for name, value in entries.items() if name in beside},
            exact={},
            memory={},
        )

    def plan(self, state: State, cohort: Cohort) -> Mapping[ClientId, Payload]:
        return dict.fromkeys(cohort, _served(state))

    def aggregate(self, state: State, replies: Sequence[Reply], stream: Stream) -> tuple[State, Numbers]:
        statistics = _mean(replies, state.statistics)
        stock = _make(self.config)
        _recall(stock, state)
        with _quiet_flwr():
            fused, _ = stock.aggregate_train(replies[0].round, [_message(reply, state.weights) for reply in replies])
        if fused is None:  # too few replies for the algorithm
            return replace(state, statistics=statistics), {"skipped": 1.0}
        arrays = {name: torch.from_numpy(array.numpy()) for name, array in fused.items()}
        weights = {name: arrays[name].to(before.dtype) for name, before in state.weights.items()}
        exact = {name: arrays[name] for name in weights if arrays[name].dtype != weights[name].dtype}
        return State(weights, statistics, exact, _memory(stock, list(arrays))), {"skipped": 0.0}

    def evaluation_payload(self, state: State, client: ClientId | None) -> Payload | None:
        return _served(state)


def _served(state: State) -> Payload:
    return Payload(weights={**state.weights, **state.statistics})


def _make(config: FlowerStrategy.Config) -> Any:
    """Flower's strategy with the given hyper-parameters. Raises ConfigError for those that it does not have."""
    from flwr.serverapp import strategy as flower

    cls = getattr(flower, config.algorithm)
    accepted = inspect.signature(cls).parameters
    given = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in _KEYWORDS or value is None:
            continue
        keyword = next((word for word in _KEYWORDS[field.name] if word in accepted), None)
        if keyword is None:
            known = ", ".join(ours for ours, theirs in _KEYWORDS.items() if set(theirs) & set(accepted))
            raise ConfigError(
                f"strategy.{field.name} = {value}: Flower's {config.algorithm} has no such hyper-parameter",
                where="strategy",
                mend=f"it has: {known or 'none'}",
            )
        given[keyword] = value
    return cls(**given)


def _recall(stock: Any, state: State) -> None:
    """Restore the memory that Flower's object has when it lives for the whole run."""
    from flwr.app import ConfigRecord

    arrays = {**state.weights, **state.exact}
    stock.fraction_train = 0.0  # the hook stores the arrays and samples no nodes: the cohort is already drawn
    stock.configure_train(0, _record(arrays), ConfigRecord(), None)
    for moment, entries in state.memory.items():
        values = {name: entries[name].numpy() for name in arrays}
        setattr(stock, moment, list(values.values()) if moment == "momentum_vector" else values)


def _memory(stock: Any, names: Sequence[str]) -> dict[str, Weights]:
    """The moments of Flower's strategy as entries by name."""
    memory: dict[str, Weights] = {}
    for moment in _MOMENTS:
        value = getattr(stock, moment, None)
        if value is None:
            continue
        named = value if isinstance(value, Mapping) else dict(zip(names, value, strict=True))
        memory[moment] = {name: torch.as_tensor(value) for name, value in named.items()}
    return memory


def _mean(replies: Sequence[Reply], entries: Weights) -> Weights:
    """The mean of some entries by size of the clients' data."""
    if not entries:
        return {}
    parts = [replace(reply, payload=Payload(weights=_pick(reply, entries))) for reply in replies]
    return fusion.fuse_weights(parts, fusion.by_examples(parts))


def _pick(reply: Reply, entries: Weights) -> Weights:
    weights = reply.payload.weights or {}
    return {name: weights[name] for name in entries}


def _record(weights: Weights) -> "ArrayRecord":
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(value.detach().cpu().contiguous().numpy()) for name, value in weights.items()})


def _message(reply: Reply, entries: Weights) -> "Message":
    """A reply as Flower's strategies expect it."""
    from flwr.app import Message, Metadata, MetricRecord, RecordDict

    metrics = MetricRecord({"num-examples": reply.num_examples})
    content = RecordDict({"arrays": _record(_pick(reply, entries)), "metrics": metrics})
    metadata = Metadata(  # complete: Flower's public constructor requires the identity of a Flower task
        run_id=0,
        message_id=f"{reply.round}-{reply.client}",
        src_node_id=reply.client,
        dst_node_id=0,
        reply_to_message_id="",
        group_id=str(reply.round),
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload]


@contextlib.contextmanager
def _quiet_flwr() -> Iterator[None]:
    """Suppress Flower's log line for every aggregation: the ledger records it."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
