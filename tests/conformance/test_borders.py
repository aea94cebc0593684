"""Whatever a client sends, every strategy's round goes on without it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import algorithms
import pytest
import tiny
import torch
from algorithms import Trail

from fedkd import rounds
from fedkd.config import EvaluateConfig
from fedkd.engine import Engine, Job, Reply, Result
from fedkd.errors import RunError
from fedkd.payload import KINDS, Payload
from fedkd.rounds import Experiment


def each_tensor(change: Callable[[torch.Tensor], Any]) -> Callable[[Reply], Reply]:
    """Spoils every tensor of a payload."""

    def spoil(reply: Reply) -> Reply:
        changed = {kind: _map(change, getattr(reply.payload, kind)) for kind in reply.payload.kinds()}
        return replace(reply, payload=Payload(**changed))

    return spoil


def _map(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    return {name: _map(change, item) if isinstance(item, torch.Tensor) else item for name, item in value.items()}


def fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: torch.full_like(t, value) if t.is_floating_point() else torch.full_like(t, -1)


def extra(reply: Reply) -> Reply:
    absent = sorted(set(KINDS) - reply.payload.kinds())[0]
    given = {kind: getattr(reply.payload, kind) for kind in reply.payload.kinds()}
    return replace(reply, payload=Payload(**given, **{absent: torch.zeros(1)}))


def misnamed(reply: Reply) -> Reply:
    """One entry under another name, in every kind that has names; else a kind too few."""
    given = {kind: getattr(reply.payload, kind) for kind in reply.payload.kinds()}
    named = {kind: value for kind, value in given.items() if not isinstance(value, torch.Tensor)}
    renamed = {kind: dict(zip(["other", *list(v)[1:]], v.values(), strict=True)) for kind, v in named.items()}
    return replace(reply, payload=Payload(**{**given, **renamed} if renamed else {}))


LIES: dict[str, Callable[[Reply], Any]] = {
    "nan": each_tensor(fill(math.nan)),
    "infinite": each_tensor(fill(math.inf)),
    "reshaped": each_tensor(lambda t: t[None]),
    "shortened": each_tensor(lambda t: t.flatten()[:1]),
    "doubled": each_tensor(lambda t: t.double()),
    "listed": each_tensor(lambda t: t.tolist()),
    "missing": each_tensor(lambda t: None),
    "empty": lambda reply: replace(reply, payload=Payload()),
    "extra": extra,
    "misnamed": misnamed,
    "no payload": lambda reply: replace(reply, payload=None),
    "no examples": lambda reply: replace(reply, num_examples=0),
    "negative": lambda reply: replace(reply, num_examples=-100),
    "giant": lambda reply: replace(reply, num_examples=10**12),
    "true": lambda reply: replace(reply, num_examples=True),
    "stale": lambda reply: replace(reply, round=reply.round - 1),
    "other exchange": lambda reply: replace(reply, exchange=reply.exchange + 1),
    "numbers": lambda reply: replace(reply, numbers={"ce": math.nan}),
    "talkative": lambda reply: replace(reply, numbers={str(i): 0.0 for i in range(10_000)}),
    "probe": lambda reply: replace(reply, probe=torch.full((8,), 255, dtype=torch.uint8)),
}


@dataclass(frozen=True)
class Told:
    """Round 2 as it was, and what each of its exchanges would have led to without the liar."""

    said: list[algorithms.Exchange]
    liar: int
    without: list[Any]


@pytest.fixture(scope="package")
def told(trail: Trail) -> Told:
    said = [exchange for exchange in trail.exchanges if exchange.cohort.round == 2]
    liar, without = said[0].cohort.clients[0], []
    for exchange in said:
        honest = [reply for reply in exchange.replies if reply.client != liar]
        without.append(tiny.canonical(trail.strategy.aggregate(exchange.before, honest, exchange.stream)[0]))
    return Told(said, liar, without)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_and_the_round_goes_on_without_the_liar(trail: Trail, told: Told, lie):
    """In every exchange of round 2, whose honest replies are replayed."""
    state, said, liar = trail.states[1], told.said, told.liar
    for number in range(len(said)):
        engine = Replay(
            said[: number + 1], lambda reply, n=number: reply.client == liar and reply.exchange == n, LIES[lie]
        )
        played = rounds.play(once(trail, number + 1), engine, state)
        (row,) = [row for row in played.clients if row["client"] == liar]
        assert (row["state"], bool(row["reason"])) == ("rejected", True)
        assert played.row["clients"] == {"ok": 3, "failed": 0, "late": 0, "rejected": 1}
        tiny.assert_same(tiny.canonical(played.state.server), told.without[number])
        if number == 0:
            assert played.state.clients.get(liar) is state.clients.get(liar)


@dataclass
class Replay(Engine):
    """Gives the replies of a round that was played, one of them spoiled."""

    said: Sequence[algorithms.Exchange]
    is_lie: Callable[[Reply], bool]
    tell: Callable[[Reply], Any]
    name = "replay"

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        replies = {reply.client: reply for reply in self.said[jobs[0].exchange].replies}
        for job in jobs:
            reply = replies[job.client]
            yield self.tell(reply) if self.is_lie(reply) else reply


def once(trail: Trail, exchanges: int) -> Experiment:
    """The experiment without evaluations, and with the first exchanges of a round only."""

    class Cut(type(trail.strategy)):  # type: ignore[misc]
        pass

    Cut.exchanges = exchanges
    config = replace(trail.experiment.config, rounds=99, evaluate=EvaluateConfig(every=99, pooled_every=99, probe=8))
    return replace(trail.experiment, config=config, strategy=Cut(trail.strategy.config))


def test_no_reply_at_all_ends_the_run_with_its_state_untouched(trail: Trail, told: Told):
    state = trail.states[1]
    before = tiny.canonical(state)
    with pytest.raises(RunError, match="only 0 of 4 clients replied usefully"):
        rounds.play(once(trail, 1), Replay(told.said, lambda reply: True, LIES["nan"]), state)
    tiny.assert_same(tiny.canonical(state), before)
