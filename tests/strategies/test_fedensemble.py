"""FedEnsemble's server half: invariants (docs/strategies/fedensemble.md)."""

import pytest
import tiny
import torch

from clients.fedensemble import FedEnsemble as Client
from clients.supervised import Supervised
from fedkd import rounds, seeds
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg
from strategies.fedensemble import FedEnsemble, State

STREAM = seeds.stream(0, "test")
SIZES = (20, 12, 7, 9)


def played(strategy, client, count: int = 3, asked: int = 2, make=tiny.normed, **changes):
    problem = tiny.problem(make, clients=len(SIZES), **changes)
    site = tiny.site(client, problem, SIZES)
    engine = tiny.FakeEngine(site)
    return tiny.play(tiny.experiment(strategy, site, clients_per_round=asked), engine, count), engine


@pytest.mark.parametrize("statistics", ["average", "local"])
def test_training_is_fedavgs_to_the_bit(statistics):
    ours, _ = played(FedEnsemble(), Client(), statistics=statistics)
    theirs, _ = played(FedAvg(), Supervised(), statistics=statistics)
    for mine, its in zip(ours, theirs, strict=True):
        tiny.assert_same_weights(mine.state.server.weights, its.state.server.weights)
        assert mine.row["terms"] == its.row["terms"]
        assert mine.row["server"] == its.row["server"]


def test_statistics_of_the_clients_own_are_what_fedavgs_clients_keep():
    """They go up to be part of the ensemble, and come back to their client as they were."""
    ours, _ = played(FedEnsemble(), Client(), statistics="local")
    theirs, engine = played(FedAvg(), Supervised(), statistics="local")
    state, initial = ours[-1].state.server, engine.site.problem.initial().weights
    for client in range(len(SIZES)):
        kept = theirs[-1].state.clients[client].kept if client in theirs[-1].state.clients else initial
        for name, rows in state.statistics.items():
            assert torch.equal(rows[client], kept[name])


def replies_of(engine, number: int):
    """What the clients of a round trained, by client."""
    jobs = [job for job in engine.jobs if (job.task, job.round) == ("train", number)]
    return {job.client: tiny.fit(engine.site.client, job, engine.site) for job in jobs}


def broadcast_of(engine, number: int):
    return next(job.payload.weights for job in engine.jobs if (job.task, job.round) == ("train", number))


def test_members_are_this_rounds_students_and_what_was_broadcast_for_all_others():
    (*_, last), engine = played(FedEnsemble(), Client())
    members, fresh = last.state.server.members, replies_of(engine, 3)
    assert members["copies"].tolist() == [1, 1, 2]
    for row, client in enumerate(sorted(fresh)):
        tiny.assert_same_weights({n: members[n][row] for n in fresh[client].payload.weights}, fresh[client])
    sent = broadcast_of(engine, 3)
    tiny.assert_same_weights({name: members[name][2] for name in sent}, sent)


def test_where_all_take_part_nobody_holds_the_broadcast_student():
    (*_, last), engine = played(FedEnsemble(), Client(), asked=4)
    assert last.state.server.members["copies"].tolist() == [1, 1, 1, 1]
    for client, reply in replies_of(engine, 3).items():
        entries = reply.payload.weights
        tiny.assert_same_weights({n: last.state.server.members[n][client] for n in entries}, entries)


def test_with_statistics_of_its_own_every_client_is_a_member():
    (*_, last), engine = played(FedEnsemble(), Client(), statistics="local")
    state, fresh, sent = last.state.server, replies_of(engine, 3), broadcast_of(engine, 3)
    assert state.members["copies"].tolist() == [1] * len(SIZES)
    for client in range(len(SIZES)):
        expected = fresh[client].payload.weights if client in fresh else sent
        for name in state.weights:
            assert torch.equal(state.members[name][client], expected[name])
        for name, rows in state.statistics.items():
            assert torch.equal(state.members[name][client], rows[client])
    idle = next(client for client in range(len(SIZES)) if client not in fresh)
    assert not torch.equal(
        state.statistics["conv.1.running_mean"][idle], fresh[min(fresh)].payload.weights["conv.1.running_mean"]
    )


@pytest.mark.parametrize("statistics", ["average", "local"])
@pytest.mark.parametrize("asked", [2, 4])
def test_the_pooled_accuracy_is_that_of_the_sum_of_all_clients_logits(statistics, asked):
    """By hand: students of all clients one after the other. Statistics of their own must not be replaced by a mean."""
    (*_, last), engine = played(FedEnsemble(), Client(), asked=asked, statistics=statistics)
    site, state, fresh, sent = engine.site, last.state.server, replies_of(engine, 3), broadcast_of(engine, 3)
    x, y = site.test.take(torch.arange(len(site.test)))
    total = torch.zeros(len(y), tiny.CLASSES)
    for client in range(len(SIZES)):
        entries = fresh[client].payload.weights if client in fresh else sent
        own = {name: rows[client] for name, rows in state.statistics.items()}
        with torch.inference_mode():
            total += site.problem.initial().load(entries, own).eval()(x)
    assert last.row["accuracy"]["global"] == pytest.approx(float((total.argmax(1) == y).float().mean()))


def test_all_are_served_one_ensemble():
    (*_, last), engine = played(FedEnsemble(), Client())
    served = [FedEnsemble().evaluation_payload(last.state.server, client) for client in (None, 0, 3)]
    assert all(payload.kinds() == {"samples"} for payload in served)
    assert len({id(payload.samples) for payload in served}) == 1
    evaluated = [job for job in engine.jobs if job.task == "evaluate" and job.round == 3]
    assert len({id(job.payload) for job in evaluated}) == 1


def test_before_the_first_round_there_is_only_the_global_student(problem):
    state = FedEnsemble().init(problem, STREAM)
    tiny.assert_same_weights(FedEnsemble().evaluation_payload(state, None).weights, problem.initial())


def test_clients_whose_statistics_travel_anyway_receive_one_object():
    problem = tiny.problem(tiny.normed)
    payloads = FedEnsemble().plan(FedEnsemble().init(problem, STREAM), Cohort((0, 2), 1))
    assert payloads[0] is payloads[2]


def test_a_client_that_fails_holds_what_was_broadcast():
    problem = tiny.problem(tiny.normed, clients=len(SIZES), statistics="local")
    site = tiny.site(Client(), problem, (20, 0, 7, 9))
    experiment = tiny.experiment(FedEnsemble(), site)
    found = rounds.run_round(experiment, tiny.FakeEngine(site), rounds.begin(experiment))
    members = found.state.server.members
    initial = problem.initial().weights
    tiny.assert_same_weights({name: members[name][1] for name in initial}, initial)
    assert len(members["copies"]) == len(SIZES)


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 1.66425), ("uniform", 1.3525)])
def test_golden_mean_of_two_scalar_clients(weighting, expected):
    """Golden: tests/quadratics.py, n = (1, 3)."""
    replies = [tiny.reply(k, {"w": torch.tensor([w])}, n) for k, (w, n) in enumerate([(0.729, 1), (1.976, 3)])]
    strategy = FedEnsemble(FedEnsemble.Config(weighting=weighting))
    state, _ = strategy.aggregate(State({"w": torch.zeros(1)}, {}, {}, 2), replies, STREAM)
    assert float(state.weights["w"]) == pytest.approx(expected, abs=1e-6)
    assert state.members["w"].flatten().tolist() == pytest.approx([0.729, 1.976])
