"""Evaluation: clients that have one student are judged in one pass, with the figures of as many single ones."""

from dataclasses import replace

import pytest
import tiny
import torch

from clients.fedfuse import FedFuse
from clients.fedproto import FedProto
from clients.supervised import Supervised
from fedkd.client import Client
from fedkd.config import EvaluateConfig
from fedkd.engine import failed
from fedkd.payload import Payload
from fedkd.training import evaluation, forward
from strategies.fedavg import FedAvg
from strategies.local import Local


def knowing(strategy, site, **changes):
    """An experiment that knows how many test samples each client has."""
    sizes = tuple(map(len, site.test_index.values()))
    config = EvaluateConfig(probe=0, pooled_every=100)
    known = {"num_tests": sizes, "personal_predictor": site.client.personal_predictor, **changes}
    return replace(tiny.experiment(strategy, site, evaluate=config), **known)


def tasks(engine):
    return [(job.task, job.clients or (job.client,)) for job in engine.jobs if job.task.startswith("evaluate")]


def test_clients_with_one_student_are_judged_in_one_pass_with_the_same_rows(problem):
    site = tiny.site(Supervised(), problem, tests=(9, 300, 1))
    together, singly = tiny.FakeEngine(site), tiny.FakeEngine(site)
    one = tiny.play(knowing(FedAvg(), site), together)[0]
    other = tiny.play(knowing(FedAvg(), site, num_tests=None), singly)[0]
    assert tiny.as_bytes(one) == tiny.as_bytes(other)
    assert [task for task, _ in tasks(singly)] == ["evaluate"] * 3
    assert tasks(together) == [("evaluate_shared", (0, 1, 2))]


def test_a_pass_is_cut_into_parts_for_several_workers(problem, monkeypatch):
    monkeypatch.setattr(forward, "POOLED_PART", 18)
    site = tiny.site(Supervised(), problem, tests=(9, 9, 9))
    engine = tiny.FakeEngine(site)
    tiny.play(knowing(FedAvg(), site), engine)
    assert tasks(engine) == [("evaluate_shared", (0, 1)), ("evaluate_shared", (2,))]


def test_students_that_keep_entries_of_their_own_are_judged_alone(problem):
    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    tiny.play(knowing(Local(), site), engine)
    assert tasks(engine) == [("evaluate", (client,)) for client in range(3)]


def test_students_that_keep_statistics_of_their_own_are_judged_alone(problem):
    site = tiny.site(Supervised(), tiny.problem(tiny.normed, statistics="local"))
    engine = tiny.FakeEngine(site)
    tiny.play(knowing(FedAvg(), site), engine)
    assert [task for task, _ in tasks(engine)] == ["evaluate"] * 3


def test_clients_that_judge_by_their_own_memory_are_judged_alone():
    class Looking(Supervised):
        def predictor(self, job):
            return super().predictor(job)

    assert all(half.personal_predictor for half in (Looking, FedFuse))
    assert not any(half.personal_predictor for half in (Client, Supervised, FedProto))


def test_a_pass_that_fails_is_a_failure_of_each_of_its_clients(problem):
    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    engine.spoil = lambda job, r: failed(job, "no memory", "raised") if job.task == "evaluate_shared" else r
    played = tiny.play(knowing(FedAvg(), site), engine)[0]
    assert [(f.client, f.task, f.what) for f in played.failures] == [(c, "evaluate", "no memory") for c in range(3)]
    assert played.row["accuracy"] == {}


@pytest.mark.parametrize(
    ("judged", "cause"),
    [
        (None, "shape"),
        (torch.ones(2, 3, dtype=torch.float64), "shape"),
        (torch.ones(3, 3), "shape"),
        (torch.tensor([[9.0, 10.0, 1.0]] * 3, dtype=torch.float64), "range"),
        (torch.tensor([[9.0, -1.0, 1.0]] * 3, dtype=torch.float64), "range"),
        (torch.tensor([[9.5, 5.0, 1.0]] * 3, dtype=torch.float64), "range"),
        (torch.tensor([[0.0, 0.0, 1.0]] * 3, dtype=torch.float64), "range"),
        (torch.tensor([[1e10, 5.0, 1.0]] * 3, dtype=torch.float64), "range"),
        (torch.tensor([[9.0, 5.0, torch.nan]] * 3, dtype=torch.float64), "non_finite"),
        (torch.tensor([[torch.inf, 5.0, 1.0]] * 3, dtype=torch.float64), "non_finite"),
    ],
)
def test_what_is_not_a_table_of_numbers_is_refused(problem, judged, cause):
    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    engine.spoil = lambda job, r: replace(r, judged=judged) if job.task == "evaluate_shared" else r
    played = tiny.play(knowing(FedAvg(), site), engine)[0]
    assert [(f.client, f.cause) for f in played.failures] == [(client, cause) for client in range(3)]


def test_a_bad_row_costs_its_own_client_only(problem):
    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    judged = torch.tensor([[9.0, 3.0, 1.0], [9.0, 10.0, 1.0], [9.0, 6.0, 1.0]], dtype=torch.float64)
    engine.spoil = lambda job, r: replace(r, judged=judged) if job.task == "evaluate_shared" else r
    played = tiny.play(knowing(FedAvg(), site), engine)[0]
    assert [(f.client, f.task, f.cause) for f in played.failures] == [(1, "evaluate", "range")]
    assert [row.get("accuracy") for row in played.clients] == [3 / 9, None, 6 / 9]


def test_a_pass_for_another_round_is_stale(problem):
    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    engine.spoil = lambda job, r: replace(r, round=7) if job.task == "evaluate_shared" else r
    played = tiny.play(knowing(FedAvg(), site), engine)[0]
    assert [(f.client, f.cause) for f in played.failures] == [(client, "stale") for client in range(3)]


def test_clients_without_test_samples_are_left_out_and_nobody_fails(problem):
    site = tiny.site(Supervised(), problem, tests=(9, 0, 9))
    engine = tiny.FakeEngine(site)
    played = tiny.play(knowing(FedAvg(), site), engine)[0]
    assert tasks(engine) == [("evaluate_shared", (0, 2))]
    assert played.failures == []
    assert [row["client"] for row in played.clients if "accuracy" in row] == [0, 2]


def test_payloads_made_of_the_same_tensors_are_one(problem):
    class Anew(FedAvg):
        def evaluation_payload(self, state, client):
            return Payload(weights=dict(state.weights))  # a dictionary for each client, as Flower's strategies do

    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    tiny.play(knowing(Anew(), site), engine)
    assert tasks(engine) == [("evaluate_shared", (0, 1, 2))]


def test_a_sample_of_clients_is_the_same_in_every_round_and_has_test_samples(problem):
    site = tiny.site(Supervised(), problem, tests=(9, 0, 9))
    config = EvaluateConfig(probe=0, pooled_every=100, clients=1)
    known = knowing(FedAvg(), site)
    sampled = replace(known, config=replace(known.config, evaluate=config))
    engine = tiny.FakeEngine(site)
    tiny.play(sampled, engine, count=3)
    ((_, who),) = set(tasks(engine))
    assert len(who) == 1
    assert who != (1,)
    assert list(evaluation.evaluated_clients(replace(known.config, clients=3), None)) == [0, 1, 2]
