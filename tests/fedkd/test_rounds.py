"""The loop: what it carries from exchange to exchange and round to round, whatever clients do."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch

from clients.supervised import Supervised
from fedkd import rounds
from fedkd.config import EvaluateConfig, RunConfig
from fedkd.engine import ClientState, Failure, Job, Reply, failed
from fedkd.errors import RunError
from fedkd.payload import Payload
from fedkd.rounds import Experiment, Round
from fedkd.strategy import Cohort, Strategy
from strategies.fedavg import FedAvg


def play(experiment: Experiment, engine: tiny.FakeEngine, count: int = 1) -> list[Round]:
    """The next `count` rounds from the beginning."""
    played, state = [], rounds.begin(experiment)
    for _ in range(count):
        played.append(rounds.play(experiment, engine, state))
        state = played[-1].state
    return played


def as_bytes(played: Round) -> str:
    """What the ledger would hold."""
    return json.dumps([played.row, played.clients])


@pytest.fixture
def experiment(site):
    return tiny.experiment(FedAvg(), site)


@pytest.fixture
def engine(site):
    return tiny.FakeEngine(site)


# A strategy with two exchanges a round and clients that remember: what the next algorithms need


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

    def served(self, state, client):
        return None


class Remembering(Supervised):
    """Remembers how often it was asked, and the sums it was told."""

    sends = frozenset({"numbers"})

    def init(self, problem, stream):
        return {"asked": 0, "told": [], "secret": torch.rand(2, generator=stream.torch())}

    def remember(self, trained, job):
        memory = trained.memory
        return {**memory, "asked": memory["asked"] + 1, "told": [*memory["told"], job.payload.numbers["sum"]]}

    def report(self, trained, job):
        return Payload(numbers={"number": float(10**job.client)})


@pytest.fixture
def two_trips(problem):
    site = tiny.site(Remembering(), problem)
    return tiny.experiment(TwoTrips(), site), tiny.FakeEngine(site)


def test_both_exchanges_of_a_round_see_the_state_the_last_one_left(two_trips):
    played = play(*two_trips, count=2)
    assert played[1].state.server.met == ("1.0:0,1,2", "1.1:0,1,2", "2.0:0,1,2", "2.1:0,1,2")
    assert played[1].state.clients[2].memory["told"] == [0, 111, 0, 111]


def test_a_clients_memory_survives_exchanges_and_rounds(two_trips):
    first, second = (played.state.clients[1] for played in play(*two_trips, count=2))
    assert (first.memory["asked"], second.memory["asked"]) == (2, 4)
    assert torch.equal(first.memory["secret"], second.memory["secret"])
    assert (first.last_round, second.last_round) == (1, 2)


def test_clients_begin_with_memories_of_their_own(two_trips):
    clients = play(*two_trips)[0].state.clients
    assert not torch.equal(clients[0].memory["secret"], clients[1].memory["secret"])


def test_batches_go_on_through_the_exchanges_of_a_round(two_trips):
    state = play(*two_trips)[0].state.clients[0]
    assert (state.epoch, state.position) == (1, 4)  # two exchanges of 3 steps of 4: 24 of 20 samples


def test_a_client_that_fails_in_one_exchange_takes_no_part_in_the_next(two_trips):
    experiment, engine = two_trips
    engine.spoil = lambda job, result: failed(job, "gone", "lost") if (job.client, job.round) == (1, 1) else result
    first, second = play(experiment, engine, count=2)
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
    played = play(experiment, engine)[0]
    assert played.state.clients[1].memory["asked"] == 1
    assert played.clients[1]["state"] == "failed"
    assert played.clients[1]["numbers"]["ce"] > 0  # of the exchange that went well


def test_bytes_of_all_exchanges_add_up(two_trips):
    played = play(*two_trips)[0]
    assert played.row["bytes"] == {"down": {"numbers": 2 * 3 * 8}, "up": {"numbers": 2 * 3 * 8}}
    assert [(row["bytes_down"], row["bytes_up"]) for row in played.clients] == [(16, 16)] * 3


def test_each_exchange_has_its_own_stream(two_trips):
    first, second = (played.row["server"] for played in play(*two_trips, count=2))
    assert len({first["draw0"], first["draw1"], second["draw0"], second["draw1"]}) == 4


def test_a_strategy_without_a_student_reports_the_clients_own_accuracy_only(two_trips):
    accuracy = play(*two_trips)[0].row["accuracy"]
    assert set(accuracy) == {"clients"}


# A round is a transaction


def test_a_round_changes_nothing_it_was_given(experiment, engine):
    state = play(experiment, engine)[0].state
    before = tiny.canonical(state)
    rounds.play(experiment, engine, state)
    tiny.assert_same(tiny.canonical(state), before)


def test_the_same_round_played_again_gives_the_same_bytes(experiment, engine):
    state = play(experiment, engine)[0].state
    one, other = (rounds.play(experiment, engine, state) for _ in range(2))
    assert as_bytes(one) == as_bytes(other)
    tiny.assert_same(tiny.canonical(one.state), tiny.canonical(other.state))


@pytest.mark.parametrize("order", [lambda r: r[::-1], lambda r: [*r[1:], r[0]]])
def test_the_order_of_replies_changes_no_byte(experiment, site, order):
    one = play(experiment, tiny.FakeEngine(site), count=3)
    other = play(experiment, tiny.FakeEngine(site, order=order), count=3)
    assert [as_bytes(played) for played in one] == [as_bytes(played) for played in other]
    tiny.assert_same(tiny.canonical(one[-1].state), tiny.canonical(other[-1].state))


def test_too_few_usable_replies_end_the_run_and_leave_the_state_alone(site):
    experiment = tiny.experiment(FedAvg(), site, quorum=2)
    state = play(experiment, tiny.FakeEngine(site))[0].state
    before = tiny.canonical(state)

    def spoil(job: Job, result: Any) -> Any:
        if job.client == 0:
            return failed(job, "out of memory", "raised")
        if job.client == 1:
            return replace(result, num_examples=-3)
        return result

    with pytest.raises(RunError) as caught:
        rounds.play(experiment, tiny.FakeEngine(site, spoil=spoil), state)
    tiny.assert_same(tiny.canonical(state), before)
    assert "round 2: only 1 of 3 clients replied usefully, quorum is 2" in str(caught.value)
    assert "(1 failed, 1 rejected: client 0: out of memory" in str(caught.value)
    assert "state of round 1 is safe" in str(caught.value)
    assert [(f.client, f.cause) for f in caught.value.failures] == [(0, "raised"), (1, "range")]
    assert caught.value.code == 4


def test_as_many_replies_as_the_quorum_are_enough(site):
    experiment = tiny.experiment(FedAvg(), site, quorum=2)
    engine = tiny.FakeEngine(site, spoil=lambda job, r: failed(job, "gone", "lost") if job.client == 0 else r)
    assert play(experiment, engine)[0].row["clients"]["ok"] == 2


# Clients that fail or lie


def poisoned(job: Job, result: Any) -> Any:
    weights = {name: torch.full_like(value, math.nan) for name, value in result.payload.weights.items()}
    return replace(result, payload=Payload(weights=weights))


def transposed(job: Job, result: Any) -> Any:
    return replace(result, payload=Payload(weights={n: v[:1] for n, v in result.payload.weights.items()}))


MISDEEDS = {
    "raised": ("failed", lambda job, result: failed(job, "ValueError: no", "raised")),
    "late": ("late", lambda job, result: failed(job, "too late", "late")),
    "lost": ("failed", lambda job, result: failed(job, "no worker", "lost")),
    "non_finite": ("rejected", poisoned),
    "shape": ("rejected", transposed),
    "kinds": ("rejected", lambda job, result: replace(result, payload=Payload())),
    "stale": ("rejected", lambda job, result: replace(result, round=job.round + 1)),
    "range": ("rejected", lambda job, result: replace(result, num_examples=10**12)),
    "unreadable": ("rejected", lambda job, result: replace(result, payload=7)),
}


@pytest.mark.parametrize("cause", MISDEEDS)
def test_the_round_goes_on_without_a_client_and_its_row_says_why(experiment, site, cause):
    state, misdeed = MISDEEDS[cause]
    engine = tiny.FakeEngine(site)
    engine.spoil = lambda job, r: misdeed(job, r) if job.client == 1 and job.task == "train" else r
    played = play(experiment, engine)[0]
    row = played.clients[1]
    assert (row["state"], row["cause"], row["bytes_up"]) == (state, cause, 0)
    assert row["reason"]
    assert played.row["clients"] == {"ok": 2, "failed": 0, "late": 0, "rejected": 0} | {state: 1}
    assert played.row["cohort"] == [0, 1, 2]
    assert [(failure.client, failure.cause) for failure in played.failures] == [(1, cause)]
    assert set(played.state.clients) == {0, 2}
    assert all(torch.isfinite(entry).all() for entry in played.state.server.weights.values())


def test_a_client_that_fails_changes_the_others_in_no_bit(site):
    """The round is as it would have been without it, but for its own row."""
    spoiled = tiny.FakeEngine(site, spoil=lambda job, r: failed(job, "gone", "lost") if job.client == 1 else r)
    played = play(tiny.experiment(FedAvg(), site), spoiled)[0]

    class Without(FedAvg):
        def plan(self, state, cohort):
            return {client: payload for client, payload in super().plan(state, cohort).items() if client != 1}

    absent = play(tiny.experiment(Without(), site), tiny.FakeEngine(site))[0]
    tiny.assert_same(tiny.canonical(played.state), tiny.canonical(absent.state))


def test_a_client_that_claims_to_be_another_is_lost_and_harms_nobody(experiment, site):
    """The honest reply comes first here; that an engine knows whom it asked is the engine's own business."""
    spoil = lambda job, r: replace(r, client=0) if job.client == 2 else r  # noqa: E731
    played = play(experiment, tiny.FakeEngine(site, spoil=spoil))[0]
    assert [row["state"] for row in played.clients] == ["ok", "ok", "failed"]
    assert played.clients[0]["examples"] == 20


def test_a_client_that_claims_to_be_a_stranger_is_lost_and_stops_nobody(experiment, site):
    spoil = lambda job, r: replace(r, client=99) if job.client == 2 else r  # noqa: E731
    played = play(experiment, tiny.FakeEngine(site, spoil=spoil))[0]
    assert [row["cause"] for row in played.clients if row["state"] != "ok"] == ["lost"]
    assert played.row["accuracy"]["clients"]


def test_a_client_without_data_is_a_failure_and_the_round_goes_on(problem):
    site = tiny.site(Supervised(), problem, sizes=(8, 0, 1))
    played = play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0]
    assert [row["state"] for row in played.clients] == ["ok", "failed", "ok"]
    assert played.clients[1]["cause"] == "no_data"


def test_a_client_without_test_data_is_left_out_of_the_accuracy(problem):
    site = tiny.site(Supervised(), problem, tests=(9, 0, 3))
    played = play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0]
    assert "accuracy" not in played.clients[1]
    assert played.clients[1]["state"] == "ok"
    own = [played.clients[k]["accuracy"] for k in (0, 2)]
    assert played.row["accuracy"]["clients"]["mean"] == pytest.approx(sum(own) / 2)


def test_a_failed_evaluation_leaves_a_gap_not_a_zero(experiment, site):
    spoil = lambda job, r: failed(job, "gone", "lost") if job.task != "train" else r  # noqa: E731
    played = play(experiment, tiny.FakeEngine(site, spoil=spoil))[0]
    assert played.row["accuracy"] == {}
    assert {failure.task for failure in played.failures} == {"evaluate", "evaluate_pooled"}
    assert played.row["clients"]["ok"] == 3


def test_a_diverged_evaluation_is_refused_not_averaged(experiment, site):
    def spoil(job: Job, result: Any) -> Any:
        if job.task == "evaluate" and job.client == 0:
            return replace(result, numbers={"correct": 1e9, "loss_sum": math.nan})
        return result

    played = play(experiment, tiny.FakeEngine(site, spoil=spoil))[0]
    assert "accuracy" not in played.clients[0]
    assert 0 <= played.row["accuracy"]["clients"]["pooled"] <= 1


# Rows


def test_bytes_are_counted_by_kind_and_direction(experiment, engine):
    played = play(experiment, engine)[0]
    entries = sum(value.numel() for value in experiment.problem.initial().weights.values())
    assert played.row["bytes"] == {"down": {"weights": 3 * 4 * entries}, "up": {"weights": 3 * 4 * entries}}
    assert {row["bytes_up"] for row in played.clients} == {4 * entries}


def test_the_row_of_a_round_holds_terms_drift_and_accuracy(experiment, engine):
    played = play(experiment, engine)[0]
    row = played.row
    assert (row["round"], row["cohort"]) == (1, [0, 1, 2])
    assert row["terms"]["ce"] == pytest.approx(sum(r["numbers"]["ce"] for r in played.clients) / 3)
    assert row["server"] == {"effective_senders": pytest.approx(2.66, abs=0.2)}
    assert row["drift"]["weights"] > 0
    assert -1 <= row["drift"]["cosine"] <= 1
    assert 0 <= row["accuracy"]["global"] <= 1
    assert [r["examples"] for r in played.clients] == [20, 12, 7]
    assert as_bytes(played)


def test_the_global_accuracy_is_over_all_parts_of_the_pooled_test_set(experiment, engine, monkeypatch):
    whole = play(experiment, engine)[0].row["accuracy"]
    monkeypatch.setattr("fedkd.training.POOLED_PART", 10)
    parts = tiny.FakeEngine(engine.site)
    split = play(experiment, parts)[0].row["accuracy"]
    assert [job.client for job in parts.jobs if job.task == "evaluate_pooled"] == [0, 1, 2]
    assert split["global"] == whole["global"]
    assert split["loss"] == pytest.approx(whole["loss"])


def test_function_drift_is_measured_where_there_is_a_probe(site):
    probed = replace(site, probe=site.test.take(torch.arange(6))[0])
    experiment = tiny.experiment(FedAvg(), probed, evaluate=EvaluateConfig(probe=6))
    assert 0 <= play(experiment, tiny.FakeEngine(probed))[0].row["drift"]["function"] <= 1
    assert "function" not in play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0].row["drift"]


def test_timings_stay_out_of_the_rows(experiment, engine):
    played = play(experiment, engine)[0]
    assert set(played.timings) == {"clients", "server", "evaluation", "busy", "total"}
    assert "seconds" not in as_bytes(played)


# Cohorts and when to evaluate


def test_cohorts_are_ascending_distinct_and_the_same_for_all_strategies():
    config = RunConfig(clients=20, clients_per_round=5)
    cohorts = [rounds.draw_cohort(config, t) for t in range(1, 30)]
    assert cohorts == [rounds.draw_cohort(replace(config, strategy={"name": "x"}), t) for t in range(1, 30)]
    assert all(list(cohort) == sorted(set(cohort)) and len(cohort) == 5 for cohort in cohorts)
    assert len(set(cohorts)) > 20
    assert set().union(*cohorts) == set(range(20))
    assert rounds.draw_cohort(replace(config, seed=1), 1) != cohorts[0]


def test_without_a_size_all_clients_take_part():
    assert rounds.draw_cohort(RunConfig(clients=4), 3) == (0, 1, 2, 3)


def test_only_the_cohort_trains_but_all_are_evaluated(site):
    experiment = tiny.experiment(FedAvg(), site, clients_per_round=1)
    played = play(experiment, tiny.FakeEngine(site))[0]
    (chosen,) = played.row["cohort"]
    assert set(played.state.clients) == {chosen}
    assert [row["state"] for row in played.clients] == ["ok" if k == chosen else "idle" for k in range(3)]
    assert all("accuracy" in row for row in played.clients)


@pytest.mark.parametrize(
    ("every", "pooled_every", "own", "pooled"), [(1, 1, "1234", "1234"), (2, 3, "24", "34"), (9, 9, "4", "4")]
)
def test_evaluations_come_when_due_and_after_the_last_round(site, every, pooled_every, own, pooled):
    evaluate = EvaluateConfig(every=every, pooled_every=pooled_every, probe=0)
    played = play(tiny.experiment(FedAvg(), site, rounds=4, evaluate=evaluate), tiny.FakeEngine(site), count=4)
    assert "".join(str(p.row["round"]) for p in played if "clients" in p.row["accuracy"]) == own
    assert "".join(str(p.row["round"]) for p in played if "global" in p.row["accuracy"]) == pooled


# What is evaluated


def test_a_shared_head_is_evaluated_on_each_clients_own_extractor(site):
    head = FedAvg(FedAvg.Config(share="head"))
    engine = tiny.FakeEngine(site)
    played = play(tiny.experiment(head, site), engine)[0]
    assert set(played.row["accuracy"]) == {"clients"}
    jobs = [job for job in engine.jobs if job.task == "evaluate"]
    for job in jobs:
        tiny.assert_same_weights(job.state.kept, played.state.clients[job.client].kept)
        tiny.assert_same_weights(job.payload.weights, played.state.server.weights)
    extractors = [tiny.canonical(state.kept) for state in played.state.clients.values()]
    assert extractors[0] != extractors[1] != extractors[2]


def test_bytes_of_a_shared_head_are_the_heads(site):
    played = play(tiny.experiment(FedAvg(FedAvg.Config(share="head")), site), tiny.FakeEngine(site))[0]
    assert played.row["bytes"]["up"] == {"weights": 3 * 4 * (tiny.LATENT + 1) * tiny.CLASSES}


def test_local_statistics_stay_and_the_pooled_evaluation_uses_their_mean():
    problem = tiny.problem(tiny.normed, statistics="local")
    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    played = play(tiny.experiment(FedAvg(), site), engine)[0]
    (pooled,) = [job for job in engine.jobs if job.task == "evaluate_pooled"]
    for name in problem.statistic_names:
        each = torch.stack([state.kept[name] for state in played.state.clients.values()])
        assert len(each) == 3
        torch.testing.assert_close(pooled.payload.weights[name], each.mean(0))
    assert not set(problem.statistic_names) & set(played.state.server.weights)
    assert not [
        n for job in engine.jobs if job.task != "evaluate_pooled" for n in job.payload.weights if "running" in n
    ]


def test_averaged_statistics_are_part_of_the_global_student():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(Supervised(), problem)
    played = play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0]
    assert set(problem.statistic_names) <= set(played.state.server.weights)
    assert all(state.kept == {} for state in played.state.clients.values())


def test_learning_goes_on_over_the_rounds(experiment, engine):
    played = play(experiment, engine, count=12)
    assert played[-1].row["accuracy"]["global"] > played[0].row["accuracy"]["global"]
    assert played[-1].row["terms"]["ce"] < 0.8 * played[0].row["terms"]["ce"]


# Going on


def test_rounds_go_on_from_a_state_as_if_never_stopped(experiment, site):
    whole = play(experiment, tiny.FakeEngine(site), count=4)
    state = play(experiment, tiny.FakeEngine(site), count=2)[-1].state
    fresh = tiny.FakeEngine(tiny.site(Supervised(), tiny.problem()))
    third = rounds.play(experiment, fresh, state)
    fourth = rounds.play(experiment, fresh, third.state)
    assert [as_bytes(whole[2]), as_bytes(whole[3])] == [as_bytes(third), as_bytes(fourth)]


def test_a_state_of_clients_is_dropped_by_no_round(site):
    experiment = tiny.experiment(FedAvg(), site, clients_per_round=1)
    played = play(experiment, tiny.FakeEngine(site), count=8)
    for before, after in itertools.pairwise(played):
        assert set(before.state.clients) <= set(after.state.clients)
        untouched = set(before.state.clients) - set(after.row["cohort"])
        assert all(before.state.clients[k] is after.state.clients[k] for k in untouched)


def test_a_client_that_never_trained_begins_with_an_empty_state(experiment, engine):
    play(experiment, engine)
    assert all(job.state == ClientState() for job in engine.jobs if job.task == "train")


def test_failures_carry_their_client_round_and_exchange():
    found = failed(Job(task="train", client=3, round=7, exchange=1, payload=Payload()), "why", "raised", "trace")
    assert found == Failure(client=3, round=7, exchange=1, what="why", cause="raised", detail="trace")
