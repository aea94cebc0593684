"""Whatever a client sends, every strategy's round goes on without it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import algorithms
import pytest
import tiny
import torch
from algorithms import Exchange, Told, Trail
from replays import Replay, given, judged, once

from fedkd import rounds
from fedkd.engine import Reply
from fedkd.errors import RunError
from fedkd.payload import KINDS, Payload

Lie = Callable[[Reply, str], Any]  # what becomes of a reply; the name is the kind of knowledge it lies about


def spoil(change: Callable[[torch.Tensor], Any]) -> Lie:
    """Every tensor of one kind changed; of scalars, all. Bytes of images say what they like."""

    def lie(reply: Reply, kind: str) -> Reply:
        value = given(reply)[kind]
        if isinstance(value, torch.Tensor):
            changed = change(value)
        else:
            changed = {name: change(torch.as_tensor(item)) for name, item in value.items()}
        return replace(reply, payload=Payload(**{**given(reply), kind: changed}))

    return lie


def fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.uint8:
            return tensor
        return torch.full_like(tensor, value if tensor.is_floating_point() else -1)

    return change


def extra(reply: Reply, kind: str) -> Reply:
    absent = min(set(KINDS) - reply.payload.kinds())
    return replace(reply, payload=Payload(**given(reply), **{absent: torch.zeros(1)}))


def without(reply: Reply, kind: str) -> Reply:
    return replace(reply, payload=Payload(**{**given(reply), kind: None}))


def misnamed(reply: Reply, kind: str) -> Reply:
    """One entry under another name; a kind without names is left out."""
    value = given(reply)[kind]
    if isinstance(value, torch.Tensor) or not value:
        return without(reply, kind)
    renamed = dict(zip(["other", *list(value)[1:]], value.values(), strict=True))
    return replace(reply, payload=Payload(**{**given(reply), kind: renamed}))


def change(**fields: Any) -> Lie:
    return lambda reply, kind: replace(reply, **fields)


ABOUT_KNOWLEDGE: dict[str, Lie] = {
    "nan": spoil(fill(math.nan)),
    "infinite": spoil(fill(math.inf)),
    "reshaped": spoil(lambda t: t[None]),
    "shortened": spoil(lambda t: t.flatten()[:1]),
    "doubled": spoil(lambda t: t.double()),
    "listed": spoil(lambda t: t.tolist()),
    "missing": without,
    "misnamed": misnamed,
}
ABOUT_THE_REST: dict[str, Lie] = {
    "empty": change(payload=Payload()),
    "extra": extra,
    "no payload": change(payload=None),
    "no examples": change(num_examples=0),
    "negative": change(num_examples=-100),
    "giant": change(num_examples=10**12),
    "true": change(num_examples=True),
    "stale": change(round=1),
    "other exchange": change(exchange=99),
    "numbers": change(numbers={"ce": math.nan}),
    "talkative": change(numbers={str(i): 0.0 for i in range(10_000)}),
    "probe": change(probe=torch.full((8,), 255, dtype=torch.uint8)),
}


@pytest.fixture(scope="module", params=algorithms.names(), ids=" ".join)
def algorithm(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Once a file of conf/strategy: what the border refuses does not depend on variants."""
    return request.param


@pytest.fixture(scope="module")
def trail(algorithm: tuple[str, ...]) -> Trail:
    return algorithms.trail(algorithm)


@pytest.fixture(scope="module")
def told(trail: Trail) -> Told:
    found = algorithms.told(trail, 2)
    if found is None:
        pytest.skip("it asks one client only: without it there is no round")
    return found


def test_every_lie_about_any_kind_of_knowledge_or_the_rest_is_refused_and_nobody_else_is(trail: Trail, told: Told):
    for exchange in told.said:
        for truth in exchange.replies:
            if truth.client == told.liar:
                check_refused(trail, exchange, truth)


def check_refused(trail: Trail, exchange: Exchange, truth: Reply) -> None:
    """All lies in the place of one honest reply, each by itself."""
    lies = {(name, kind): lie for kind in sorted(truth.payload.kinds()) for name, lie in ABOUT_KNOWLEDGE.items()}
    lies |= {(name, ""): lie for name, lie in ABOUT_THE_REST.items()}
    honest, others = tiny.lasting(truth), [reply.client for reply in exchange.replies if reply is not truth]
    for (name, kind), lie in lies.items():
        said = lie(truth, kind)
        if tiny.lasting(said) == honest:
            continue  # no lie: there is nothing to it, as in `empty` where nothing is asked for
        found = judged(trail, exchange, lambda reply, said=said: said if reply is truth else reply)
        refused = [(failure.client, failure.is_rejected, bool(failure.what)) for failure in found.failures]
        about = f"a reply that is '{name}'" + (f", of its {kind}" if kind else "")
        assert refused == [(truth.client, True, True)], f"{about}, was not refused with a reason, or others were"
        assert [reply.client for reply in found.replies] == others


def test_a_round_with_a_refused_reply_goes_on_as_if_the_liar_had_been_silent(trail: Trail, told: Told):
    """In each exchange, whose honest replies are replayed; whatever was wrong with the reply."""
    state, liar = trail.states[1], told.liar
    for number in range(len(told.said)):
        said = told.said[: number + 1]
        if liar not in {reply.client for reply in said[-1].replies}:
            continue

        def tell(reply: Reply, number: int = number) -> Any:
            return extra(reply, "") if (reply.client, reply.exchange) == (liar, number) else reply

        played = rounds.run_round(once(trail, number + 1), Replay(said, tell), state)
        (row,) = [row for row in played.clients if row["client"] == liar]
        assert (row["state"], bool(row["reason"])) == ("rejected", True)
        assert played.row["clients"] == {"ok": len(told.said[0].asked) - 1, "failed": 0, "late": 0, "rejected": 1}
        tiny.assert_same(tiny.canonical(played.state.server), told.without[number])
        if number == 0:
            assert played.state.clients.get(liar) is state.clients.get(liar)


def test_no_reply_at_all_ends_the_run_with_its_state_untouched(trail: Trail, told: Told):
    state = trail.states[1]
    before = tiny.canonical(state)
    with pytest.raises(RunError, match=f"only 0 of {len(told.said[0].asked)} clients replied usefully"):
        rounds.run_round(once(trail, 1), Replay(told.said, lambda reply: extra(reply, "")), state)
    tiny.assert_same(tiny.canonical(state), before)
