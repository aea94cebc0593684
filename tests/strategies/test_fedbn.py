"""FedBN's server half: invariants (docs/strategies/fedbn.md)."""

from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch

from clients.supervised import Supervised
from fedkd import seeds
from fedkd.models import students
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg
from strategies.fedbn import FedBN, State, batch_norm_entries

STREAM = seeds.stream(0, "test")


def played(strategy, make, count: int = 2, **changes):
    site = replace(tiny.site(Supervised(), tiny.problem(make, **changes)), common=torch.arange(5))
    engine = tiny.FakeEngine(site)
    return tiny.play(tiny.experiment(strategy, site), engine, count), engine


def test_norms_are_found_by_type_whatever_their_names():
    """The second layer of a sequence, and the norm of a shortcut: a rule on names ("bn") misses both."""
    entries = batch_norm_entries(tiny.problem(tiny.normed).shape)
    assert entries == {f"conv.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    resnet = tiny.problem(partial(students.make, "resnet8", (1, 8, 8), 3))
    names = batch_norm_entries(resnet.shape)
    assert "stage2.unit1.shortcut.norm.weight" in names
    assert {name for name in resnet.initial().weights if ".norm" in name} == names


def test_a_group_norm_is_no_batch_norm():
    grouped = tiny.problem(partial(students.make, "fedgen-cnn", (1, 8, 8), 3, "group"))
    assert not batch_norm_entries(grouped.shape)
    assert len(FedBN().init(grouped, STREAM).weights) == len(grouped.initial().weights)


@pytest.mark.parametrize("statistics", ["average", "local"])
def test_no_entry_of_a_batch_norm_crosses(statistics):
    _, engine = played(FedBN(), tiny.normed, statistics=statistics)
    expected = {"conv.0.weight", "conv.0.bias", "latent.1.weight", "latent.1.bias", "head.weight", "head.bias"}
    assert all(set(job.payload.weights) == expected for job in engine.jobs if job.payload.weights)
    for job in engine.jobs:
        if job.task == "train":
            assert set(tiny.fit(engine.site.client, job, engine.site).payload.weights) == expected


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_without_batch_norm_it_is_fedavg_to_the_bit(weighting):
    """Its global student included."""
    ours, _ = played(FedBN(FedBN.Config(weighting=weighting)), tiny.plain)
    theirs, _ = played(FedAvg(FedAvg.Config(weighting=weighting)), tiny.plain)
    assert [tiny.as_bytes(p) for p in ours] == [tiny.as_bytes(p) for p in theirs]
    assert "global" in ours[-1].row["accuracy"]
    tiny.assert_same(tiny.canonical(ours[-1].state.clients), tiny.canonical(theirs[-1].state.clients))
    tiny.assert_same_weights(ours[-1].state.server.weights, theirs[-1].state.server.weights)


def test_a_broadcast_gives_all_the_same_shared_entries_and_leaves_each_its_own_norms():
    (*_, last), engine = played(FedBN(), tiny.normed)
    state, norms = last.state, batch_norm_entries(engine.site.problem.shape)
    loaded = {}
    for client, its in state.clients.items():
        assert set(its.kept) == norms
        payload = FedBN().evaluation_payload(state.server, client)
        job = tiny.job(engine.site.problem, client=client, payload=payload, state=its)
        loaded[client] = engine.site.student(job).weights
        tiny.assert_same_weights({n: loaded[client][n] for n in its.kept}, its.kept)
        tiny.assert_same_weights({n: loaded[client][n] for n in payload.weights}, payload.weights)
    for name in norms:  # and they differ, or nothing above means anything
        assert not torch.equal(loaded[0][name], loaded[1][name])


def test_norms_learn_and_gather_statistics_at_their_clients():
    (first, second), _ = played(FedBN(), tiny.normed)
    for client in range(3):
        before, after = first.state.clients[client].kept, second.state.clients[client].kept
        assert all(not torch.equal(before[name], after[name]) for name in before)


def test_with_batch_norm_no_student_is_global():
    (*_, last), _ = played(FedBN(), tiny.normed)
    assert FedBN().evaluation_payload(last.state.server, None) is None
    assert "global" not in last.row["accuracy"]
    assert set(last.row["accuracy"]) == {"clients", "common", "trained", "by_class"}


def test_a_client_that_never_trained_has_the_initial_norms():
    problem = tiny.problem(tiny.normed)
    strategy, site = FedBN(), tiny.site(Supervised(), problem)
    state = strategy.init(problem, STREAM)
    student = site.student(tiny.job(problem, task="evaluate", payload=strategy.evaluation_payload(state, 2)))
    tiny.assert_same_weights(student, problem.initial())


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 1.66425), ("uniform", 1.3525)])
def test_golden_mean_of_two_scalar_clients(weighting, expected):
    """Golden: tests/quadratics.py, n = (1, 3)."""
    replies = [tiny.reply(k, {"w": torch.tensor([w])}, n) for k, (w, n) in enumerate([(0.729, 1), (1.976, 3)])]
    strategy = FedBN(FedBN.Config(weighting=weighting))
    state, _ = strategy.aggregate(State({"w": torch.zeros(1)}, False), replies, STREAM)
    assert float(state.weights["w"]) == pytest.approx(expected, abs=1e-6)


def test_all_clients_receive_one_object(problem):
    payloads = FedBN().plan(FedBN().init(problem, STREAM), Cohort((0, 2), 1))
    assert list(payloads) == [0, 2]
    assert isinstance(payloads[0], Payload)
    assert payloads[0] is payloads[2]
