"""Well-formed lies: every strategy refuses them, names the liar, and is as it would be without it."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import algorithms
import pytest
import tiny
import torch
from algorithms import Told, Trail
from replays import Replay, given, once

from fedkd import rounds
from fedkd.engine import Engine, Job, Reply, Result, failed
from fedkd.payload import Payload
from simulations import assemble

LARGEST = torch.finfo(torch.float32).max
VALUES = (1e6, 1e10, 1e30, LARGEST)
COUNT = 10**9


@pytest.fixture(scope="module", params=algorithms.names(), ids=" ".join)
def trail(request: pytest.FixtureRequest) -> Trail:
    """Once a file of conf/strategy."""
    return algorithms.trail(request.param)


@pytest.fixture(scope="module")
def told(trail: Trail) -> Told:
    found = algorithms.told(trail, 1)
    if found is None:
        pytest.skip("it asks one client only: without it there is no round")
    return found


def poisoned(reply: Reply, kind: str, value: float) -> Reply:
    """The same reply with one kind of knowledge full of a value; whole numbers and images of bytes stay as they are."""
    knowledge = given(reply)[kind]
    if isinstance(knowledge, torch.Tensor):
        changed: Any = fill(knowledge, value)
    else:
        changed = {name: fill(part, value) for name, part in knowledge.items()}
    return replace(reply, payload=Payload(**{**given(reply), kind: changed}))


def fill(part: Any, value: float) -> Any:
    if not isinstance(part, torch.Tensor):
        return float(value)
    return torch.full_like(part, min(value, torch.finfo(part.dtype).max)) if part.is_floating_point() else part


def bragging(reply: Reply, kind: str, value: float) -> Reply:
    """A billion samples of each label."""
    counts = reply.payload.label_counts
    if counts is None:
        return reply
    return replace(reply, payload=Payload(**{**given(reply), "label_counts": torch.full_like(counts, COUNT)}))


@pytest.mark.parametrize("value", VALUES)
def test_a_value_beyond_all_others_is_refused_in_any_kind_and_the_round_is_as_without_it(trail, told, value):
    for number, exchange in enumerate(told.said):
        for kind in sorted(exchange.replies[0].payload.kinds()):
            check_refused(trail, told, number, lambda reply, kind=kind: poisoned(reply, kind, value))


def test_counts_beyond_all_data_are_refused_and_the_round_is_as_without_them(trail, told):
    for number in range(len(told.said)):
        check_refused(trail, told, number, lambda reply: replace(reply, num_examples=COUNT))
        check_refused(trail, told, number, lambda reply: bragging(reply, "label_counts", COUNT))


def check_refused(trail: Trail, told: Told, number: int, lie: Callable[[Reply], Reply]) -> None:
    """In an exchange of round 1, whose honest replies are replayed."""
    said, liar = told.said[: number + 1], told.liar
    truths = [reply for reply in said[-1].replies if reply.client == liar]
    if all(
        tiny.lasting(replace(lie(truth), num_examples=truth.num_examples)) == tiny.lasting(truth)
        and lie(truth).num_examples <= truth.num_examples
        for truth in truths
    ):
        return  # nothing in it that could be a lie

    def tell(reply: Reply) -> Any:
        return lie(reply) if (reply.client, reply.exchange) == (liar, number) else reply

    played = rounds.play(once(trail, number + 1), Replay(said, tell), trail.states[0])
    assert {failure.client for failure in played.failures} == {liar}
    assert all(failure.is_rejected for failure in played.failures)
    (row,) = [row for row in played.clients if row["client"] == liar]
    assert (row["state"], bool(row["reason"])) == ("rejected", True)
    tiny.assert_same(tiny.canonical(played.state.server), told.without[number])


@dataclass
class Lying(Engine):
    """Client 0 lies in all it sends in round 1, or is silent."""

    inner: Engine
    is_silent: bool
    name = "lying"

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        for job, result in zip(jobs, self.inner.run(jobs, deadline), strict=True):
            is_lie = (job.task, job.client, job.round) == ("train", 0, 1) and isinstance(result, Reply)
            yield self.spoil(job, result) if is_lie else result

    def spoil(self, job: Job, reply: Reply) -> Result:
        if self.is_silent:
            return failed(job, "gone", "lost")
        for kind in sorted(reply.payload.kinds()):
            reply = poisoned(reply, kind, 1e6)
        return replace(reply, num_examples=1)


def test_a_run_with_a_liar_ends_with_the_figures_of_a_run_without_it(trail: Trail, told: Told):
    """To the last bit: what is refused leaves no trace. Round 1 alone, from client 0, as if it had one sample."""
    if not any(exchange.replies[0].payload.kinds() for exchange in told.said):
        pytest.skip("its clients send nothing that could be a lie")
    assembly = assemble.assemble(algorithms.configure(trail.words, "clients_per_round=5", "rounds=2"))
    lied, silent = (
        algorithms.play(assembly.experiment, Lying(tiny.FakeEngine(assembly.site), is_silent))
        for is_silent in (False, True)
    )
    assert {failure.client for failure in lied[0].failures} == {0}
    assert [played.row["accuracy"] for played in lied] == [played.row["accuracy"] for played in silent]
    assert json.dumps([played.row for played in lied], allow_nan=False)
    assert not math.isnan(sum(lied[-1].row["accuracy"]["clients"].values()))
