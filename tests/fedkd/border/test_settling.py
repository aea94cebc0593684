"""Settling: no state that is not finite comes of an exchange, and those who would have spoiled it are named."""

from dataclasses import dataclass, replace

import pytest
import tiny
import torch

from fedkd import rounds
from fedkd.border import settling
from fedkd.config import BorderConfig
from fedkd.engine import Job
from fedkd.errors import RunError
from fedkd.payload import Payload
from fedkd.seeds import stream
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg

OFF = BorderConfig(limit=0, quarantine_after=0)


@dataclass(frozen=True)
class Sum:
    total: torch.Tensor


class Summing(FedAvg):
    """Its state is the sum of what comes; who sends over 100 spoils it, over 1000 breaks it."""

    tried = 0

    def aggregate(self, state, replies, stream):
        type(self).tried += 1
        numbers = [reply.num_examples for reply in replies]
        if max(numbers) > 1000:
            raise ZeroDivisionError("too much")
        spoiled = float("inf") if max(numbers) > 100 else 0.0
        return Sum(torch.tensor([sum(numbers) + spoiled])), {"sum": float(sum(numbers))}

    def plan(self, state, cohort):
        return dict.fromkeys(cohort, Payload(prototypes=state.total.reciprocal()))


def settle(*numbers, ratios=None, quorum=1, strategy=None):
    jobs = {client: Job(task="train", client=client, round=1, payload=Payload()) for client in range(len(numbers))}
    replies = [tiny.reply(client, num_examples=number) for client, number in enumerate(numbers)]
    Summing.tried = 0
    strategy = strategy or Summing()
    return settling.settle(
        strategy, Sum(torch.zeros(1)), jobs, replies, ratios or {}, quorum, stream(0, "x"), lambda r: Cohort(r, 2)
    )


def culprits(settled):
    return [(failure.client, failure.cause) for failure in settled.failures]


def test_good_replies_are_aggregated_once():
    settled = settle(1, 2, 3)
    assert (Summing.tried, culprits(settled), len(settled.replies)) == (1, [], 3)
    assert settled.server.total.item() == 6


@pytest.mark.parametrize("bad", [500, 5000])
def test_the_reply_that_stands_out_most_is_left_out_first(bad):
    settled = settle(1, bad, 3, ratios={0: 1.0, 1: 900.0, 2: 2.0})
    assert (Summing.tried, culprits(settled)) == (2, [(1, "range")])
    assert settled.server.total.item() == 4
    assert settled.findings == {"sum": 4.0}


def test_those_left_out_on_the_way_to_the_culprit_are_taken_back():
    settled = settle(1, 500, 3, 700, 1, ratios={0: 9.0, 3: 7.0, 2: 5.0, 1: 3.0})
    assert culprits(settled) == [(3, "range"), (1, "range")]
    assert [reply.client for reply in settled.replies] == [0, 2, 4]


def test_a_culprit_that_stands_out_least_is_found_too():
    assert culprits(settle(1, 500, 3, ratios={0: 9.0, 2: 5.0, 1: 1.0})) == [(1, "range")]


def test_several_culprits_are_found_together():
    settled = settle(500, 1, 700, 3, ratios={0: 9.0, 2: 8.0})
    assert (culprits(settled), settled.server.total.item()) == ([(0, "range"), (2, "range")], 4)


def test_the_work_is_bounded_and_a_hopeless_round_is_not_aggregated_at_all():
    settled = settle(*[500] * 30)
    assert Summing.tried == 1 + 4 + 3
    assert (settled.server.total.item(), len(settled.replies)) == (0, 0)
    assert culprits(settled) == [(client, "unsettled") for client in range(30)]


def test_never_fewer_replies_than_the_quorum_are_aggregated():
    assert culprits(settle(1, 500, ratios={1: 9.0}, quorum=2)) == [(0, "unsettled"), (1, "unsettled")]


def test_what_would_be_sent_next_must_be_finite_too():
    """1 / 0 is planned for the next round: the state itself is finite."""

    class Cancelling(Summing):
        def aggregate(self, state, replies, stream):
            return Sum(torch.tensor([float(sum(r.num_examples for r in replies) - 3)])), {}

    settled = settle(1, 2, strategy=Cancelling())
    assert "to be sent next" in settling._wrong(Cancelling(), Sum(torch.zeros(1)), Cohort((0,), 2))
    assert culprits(settled) == [(0, "range")]


def test_an_error_that_no_reply_is_to_blame_for_passes():
    class Broken(Summing):
        def aggregate(self, state, replies, stream):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        settle(1, 2, 3, strategy=Broken())


# In a run


class Fragile(FedAvg):
    """Averages what FedAvg averages, and loses itself in entries over 50."""

    def aggregate(self, state, replies, stream):
        after, findings = super().aggregate(state, replies, stream)
        worst = max(float(value.abs().max()) for reply in replies for value in reply.payload.weights.values())
        scale = float("inf") if worst > 50 else 1.0
        return replace(after, weights={name: value * scale for name, value in after.weights.items()}), findings


def lying(*clients, rounds_of=(1,)):
    def spoil(job, result):
        if job.task != "train" or job.client not in clients or job.round not in rounds_of:
            return result
        weights = {name: torch.full_like(value, 60.0) for name, value in result.payload.weights.items()}
        return replace(result, payload=Payload(weights=weights))

    return spoil


def test_a_round_is_aggregated_again_without_the_client_that_would_spoil_it(site):
    experiment = tiny.experiment(Fragile(), site, border=OFF)
    played = tiny.play(experiment, tiny.FakeEngine(site, spoil=lying(1)))[0]
    assert [(f.client, f.cause) for f in played.failures] == [(1, "range")]
    assert played.clients[1]["state"] == "rejected"
    assert played.row["clients"] == {"ok": 2, "failed": 0, "late": 0, "rejected": 1}
    assert set(played.state.clients) == {0, 2}


def test_a_round_of_liars_changes_nothing_and_the_next_round_runs(site):
    experiment = tiny.experiment(Fragile(), site, border=OFF)
    begun = rounds.begin(experiment)
    first, second = tiny.play(experiment, tiny.FakeEngine(site, spoil=lying(0, 1, 2)), count=2)
    tiny.assert_same(tiny.canonical(first.state.server), tiny.canonical(begun.server))
    assert (first.state.round, dict(first.state.clients), first.state.standing.unsettled) == (1, {}, 1)
    assert {f.cause for f in first.failures} == {"unsettled"}
    assert first.row["clients"]["rejected"] == 3
    assert second.row["clients"]["ok"] == 3
    assert second.state.standing.unsettled == 0


def test_three_rounds_in_a_row_that_change_nothing_end_the_run(site):
    experiment = tiny.experiment(Fragile(), site, border=OFF)
    engine = tiny.FakeEngine(site, spoil=lying(0, 1, 2, rounds_of=(1, 2, 3)))
    with pytest.raises(RunError, match="round 3: 3 rounds in a row gave no finite state"):
        tiny.play(experiment, engine, count=3)
