"""Well-formed lies: every strategy refuses them, names the liar, and is as it would be without it."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import algorithms
import pytest
import tiny
import torch
from algorithms import Exchange, Told, Trail
from replays import Replay, given, judged, once

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


def bragging(reply: Reply) -> Reply:
    """A billion samples of each label."""
    counts = reply.payload.label_counts
    if counts is None:
        return reply
    return replace(reply, payload=Payload(**{**given(reply), "label_counts": torch.full_like(counts, COUNT)}))


def test_a_value_beyond_all_others_is_refused_in_any_kind_of_knowledge(trail: Trail, told: Told):
    for exchange in told.said:
        for truth in exchange.replies:
            for kind in sorted(truth.payload.kinds()) if truth.client == told.liar else ():
                for value in VALUES:
                    check_refused(trail, exchange, truth, poisoned(truth, kind, value), f"{kind}: {value}")


def test_counts_beyond_all_data_are_refused(trail: Trail, told: Told):
    for exchange in told.said:
        for truth in exchange.replies:
            if truth.client == told.liar:
                check_refused(trail, exchange, truth, replace(truth, num_examples=COUNT), "num_examples")
                check_refused(trail, exchange, truth, bragging(truth), "label_counts")


def check_refused(trail: Trail, exchange: Exchange, truth: Reply, lie: Reply, about: str) -> None:
    """The lie in the place of an honest reply is refused, and no other reply is."""
    if tiny.lasting(lie) == tiny.lasting(truth):
        return  # nothing in it that could be a lie
    found = judged(trail, exchange, lambda reply: lie if reply is truth else reply)
    assert (about, {failure.client for failure in found.failures}) == (about, {truth.client})
    assert all(failure.is_rejected and failure.what for failure in found.failures)


def test_what_is_refused_leaves_no_trace_in_the_state_after_its_round(trail: Trail, told: Told):
    """Round 1 with its honest replies replayed, and with a liar in the first exchange, or without it."""
    if not told.said[0].replies[0].payload.kinds():
        pytest.skip("its clients send nothing that could be a lie")

    def tell(reply: Reply) -> Any:
        return lied(reply) if reply.client == told.liar else reply

    played = rounds.run_round(once(trail, 1), Replay(told.said, tell), trail.states[0])
    assert [(failure.client, failure.is_rejected) for failure in played.failures] == [(told.liar, True)]
    (row,) = [row for row in played.clients if row["client"] == told.liar]
    assert (row["state"], bool(row["reason"])) == ("rejected", True)
    tiny.assert_same(tiny.canonical(played.state.server), told.without[0])
    assert told.liar not in played.state.clients


def lied(reply: Reply) -> Reply:
    """All kinds of knowledge far beyond the others', as if of one sample."""
    for kind in sorted(reply.payload.kinds()):
        reply = poisoned(reply, kind, 1e6)
    return replace(reply, num_examples=1)


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
        return lied(reply)


@pytest.mark.parametrize("name", ["fedavg", "fedfuse", "fedgen", "knfu"])
def test_a_run_with_a_liar_ends_with_the_figures_of_a_run_without_it(name: str):
    """To the last bit: what is refused leaves no trace. Round 1 alone, from client 0, as if it had one sample."""
    assembly = assemble.assemble(algorithms.configure((f"strategy={name}",), "clients_per_round=5", "rounds=2"))
    lied, silent = (
        algorithms.play(assembly.experiment, Lying(tiny.FakeEngine(assembly.site), is_silent))
        for is_silent in (False, True)
    )
    assert {failure.client for failure in lied[0].failures} == {0}
    assert [played.row["accuracy"] for played in lied] == [played.row["accuracy"] for played in silent]
    assert json.dumps([played.row for played in lied], allow_nan=False)
    assert not math.isnan(sum(lied[-1].row["accuracy"]["clients"].values()))
