"""Rounds of two exchanges and clients that remember: the loop carries what the next algorithms need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import tiny
import torch

from clients.supervised import Supervised
from fedkd.border import checks
from fedkd.engine import Reply, failed
from fedkd.errors import RunError
from fedkd.payload import Payload
from fedkd.strategy import Cohort, Strategy
from fedkd.training import optimisers


@dataclass(frozen=True)
class Sums:
    totals: Mapping[int, float]  # by client, as last reported
    met: tuple[str, ...] = ()  # cohorts it planned for


class TwoTrips(Strategy[Sums]):
    """Exchange 0 asks for a number, exchange 1 sends the sum of all numbers to those that answered."""

    needs = frozenset({"numbers"})
    gives = frozenset({"numbers"})
    exchanges = 2

    def init(self, problem, stream):
        return Sums({})

    def plan(self, state, cohort: Cohort):
        sent = Payload(numbers={"sum": sum(state.totals.values()) if cohort.exchange else 0.0})
        return dict.fromkeys(cohort, sent)

    def aggregate(self, state, replies: Sequence[Reply], stream):
        totals = {reply.client: reply.payload.numbers["number"] for reply in replies}
        met = f"{replies[0].round}.{replies[0].exchange}:" + ",".join(str(reply.client) for reply in replies)
        return Sums(totals, (*state.met, met)), {f"draw{replies[0].exchange}": float(stream.numpy().random())}

    def evaluation_payload(self, state, client):
        return None


class Remembering(Supervised):
    """Remembers how often it was asked, and the sums it was told."""

    sends = frozenset({"numbers"})

    def init(self, problem, stream):
        return {"asked": 0, "told": [], "secret": torch.rand(2, generator=stream.torch())}

    def next_memory(self, trained, job):
        memory = trained.memory
        return {**memory, "asked": memory["asked"] + 1, "told": [*memory["told"], job.payload.numbers["sum"]]}

    def report(self, trained, job):
        return Payload(numbers={"number": float(10**job.client)})


@pytest.fixture
def two_trips(problem):
    site = tiny.site(Remembering(), problem)
    return tiny.experiment(TwoTrips(), site), tiny.FakeEngine(site)


def test_both_exchanges_of_a_round_see_the_state_the_last_one_left(two_trips):
    played = tiny.play(*two_trips, count=2)
    assert played[1].state.server.met == ("1.0:0,1,2", "1.1:0,1,2", "2.0:0,1,2", "2.1:0,1,2")
    assert played[1].state.clients[2].memory["told"] == [0, 111, 0, 111]


def test_a_clients_memory_survives_exchanges_and_rounds(two_trips):
    first, second = (played.state.clients[1] for played in tiny.play(*two_trips, count=2))
    assert (first.memory["asked"], second.memory["asked"]) == (2, 4)
    assert torch.equal(first.memory["secret"], second.memory["secret"])
    assert (first.last_round, second.last_round) == (1, 2)


def test_clients_begin_with_memories_of_their_own(two_trips):
    clients = tiny.play(*two_trips)[0].state.clients
    assert not torch.equal(clients[0].memory["secret"], clients[1].memory["secret"])


def test_under_the_clock_of_participations_both_exchanges_of_a_round_have_its_rate(two_trips):
    experiment, engine = two_trips
    tiny.play(experiment, engine, count=3)
    problem = tiny.problem(train=replace(tiny.TRAIN, lr=0.1, lr_decay=0.5, lr_clock="participation"))
    rates = [optimisers.learning_rate(problem, job) for job in engine.jobs if job.task == "train" and job.client == 0]
    assert rates == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05]  # as FedGen's code: the second participation is not decayed


def test_batches_go_on_through_the_exchanges_of_a_round(two_trips):
    state = tiny.play(*two_trips)[0].state.clients[0]
    assert (state.epoch, state.position) == (1, 4)  # two exchanges of 3 steps of 4: 24 of 20 samples


def test_a_client_that_fails_in_one_exchange_takes_no_part_in_the_next(two_trips):
    experiment, engine = two_trips
    engine.spoil = lambda job, result: failed(job, "gone", "lost") if (job.client, job.round) == (1, 1) else result
    first, second = tiny.play(experiment, engine, count=2)
    assert [(job.client, job.exchange) for job in engine.jobs if job.task == "train" and job.round == 1] == [
        (0, 0), (1, 0), (2, 0), (0, 1), (2, 1),
    ]  # fmt: skip
    assert first.state.clients[0].memory["told"] == [0, 101]
    assert set(first.state.clients) == {0, 2}
    assert [row["state"] for row in first.clients] == ["ok", "failed", "ok"]
    assert second.row["clients"] == {"ok": 3, "failed": 0, "late": 0, "rejected": 0}


def test_a_client_that_fails_in_the_second_exchange_keeps_what_the_first_gave_it(two_trips):
    experiment, engine = two_trips
    engine.spoil = lambda job, result: failed(job, "gone", "lost") if (job.client, job.exchange) == (1, 1) else result
    played = tiny.play(experiment, engine)[0]
    assert played.state.clients[1].memory["asked"] == 1
    assert played.clients[1]["state"] == "failed"
    assert played.clients[1]["numbers"]["ce"] > 0  # of the exchange that went well


def test_bytes_of_all_exchanges_add_up(two_trips):
    played = tiny.play(*two_trips)[0]
    assert played.row["bytes"] == {"down": {"numbers": 2 * 3 * 8}, "up": {"numbers": 2 * 3 * 8}}
    assert [(row["bytes_down"], row["bytes_up"]) for row in played.clients] == [(16, 16)] * 3


def test_each_exchange_has_its_own_stream(two_trips):
    first, second = (played.row["server"] for played in tiny.play(*two_trips, count=2))
    assert len({first["draw0"], first["draw1"], second["draw0"], second["draw1"]}) == 4


def test_a_strategy_without_a_student_reports_the_clients_own_accuracy_only(two_trips):
    accuracy = tiny.play(*two_trips)[0].row["accuracy"]
    assert set(accuracy) == {"clients", "trained"}


# Exchanges that differ


class Alternating(TwoTrips):
    """One exchange in odd rounds, two in even ones; the second asks for nothing."""

    def num_exchanges(self, round):
        return 2 if round % 2 == 0 else 1

    def expected_kinds(self, cohort: Cohort):
        return self.needs if cohort.exchange == 0 else frozenset()

    def aggregate(self, state, replies: Sequence[Reply], stream):
        if replies[0].exchange:
            return Sums(state.totals, (*state.met, f"{replies[0].round}.1")), {"heard": [len(replies), [0.5]]}
        return super().aggregate(state, replies, stream)


class Answering(Remembering):
    def report(self, trained, job):
        return Payload() if job.exchange else super().report(trained, job)


@pytest.fixture
def alternating(problem):
    site = tiny.site(Answering(), problem)
    return tiny.experiment(Alternating(), site), tiny.FakeEngine(site)


def test_a_round_has_as_many_exchanges_as_the_strategy_says(alternating):
    played = tiny.play(*alternating, count=3)
    assert played[2].state.server.met == ("1.0:0,1,2", "2.0:0,1,2", "2.1", "3.0:0,1,2")
    assert not [failure for each in played for failure in each.failures if failure.task == "train"]


def test_findings_may_be_lists_and_those_of_all_exchanges_are_in_the_row(alternating):
    played = tiny.play(*alternating, count=2)
    assert set(played[0].row["server"]) == {"draw0"}
    assert set(played[1].row["server"]) == {"draw0", "heard"}
    assert played[1].row["server"]["heard"] == [3, [0.5]]


def test_a_reply_brings_what_its_exchange_asks_for_neither_more_nor_less(problem):
    site = tiny.site(Remembering(), problem)  # answers in both exchanges
    with pytest.raises(RunError, match=r"payload has kinds \['numbers'\], expected \[\]"):
        tiny.play(tiny.experiment(Alternating(), site), tiny.FakeEngine(site), count=2)


def test_a_reply_that_the_strategy_refuses_is_left_out(problem):
    class Strict(TwoTrips):
        def inspect(self, state, job, reply):
            if job.exchange == 0 and reply.client == 1:
                raise checks.Refused("range", f"{reply.payload.numbers['number']} after {len(state.totals)}")

    site = tiny.site(Remembering(), problem)
    (played,) = tiny.play(tiny.experiment(Strict(), site), tiny.FakeEngine(site))
    assert played.state.server.met == ("1.0:0,2", "1.1:0,2")
    assert played.row["clients"] == {"ok": 2, "failed": 0, "late": 0, "rejected": 1}
    assert [failure.what for failure in played.failures if failure.task == "train"] == ["10.0 after 0"]
