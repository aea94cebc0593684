"""FedRep's and FedPer's server half: invariants (docs/strategies/fedrep.md, equation 4)."""

from dataclasses import replace

import pytest
import tiny
import torch

from clients.fedrep import FedRep as Client
from fedkd import seeds
from fedkd.strategy import Cohort
from strategies.fedrep import FedRep, State

STREAM = seeds.stream(0, "test")
BODY = {"conv.0.weight", "conv.0.bias", "conv.1.weight", "conv.1.bias", "latent.1.weight", "latent.1.bias"}
STATISTICS = {"conv.1.running_mean", "conv.1.running_var"}


def played(order: str = "head_then_body", count: int = 2, **changes):
    client = Client(Client.Config(order=order))
    site = replace(tiny.site(client, tiny.problem(tiny.normed, **changes)), common=torch.arange(5))
    engine = tiny.FakeEngine(site)
    return tiny.play(tiny.experiment(FedRep(), site), engine, count), engine


@pytest.mark.parametrize(("statistics", "expected"), [("average", BODY | STATISTICS), ("local", BODY)])
def test_the_head_never_crosses(statistics, expected):
    (*_, last), engine = played(statistics=statistics)
    assert set(last.state.server.weights) == expected
    assert all(set(job.payload.weights) == expected for job in engine.jobs)


@pytest.mark.parametrize("order", ["head_then_body", "joint"])
def test_a_broadcast_gives_all_the_same_body_under_each_its_own_head(order):
    (*_, last), engine = played(order)
    loaded = {}
    for client, state in last.state.clients.items():
        payload = FedRep().evaluation_payload(last.state.server, client)
        job = tiny.job(engine.site.problem, task="evaluate", client=client, payload=payload, state=state)
        loaded[client] = engine.site.student(job).weights
        tiny.assert_same_weights({n: loaded[client][n] for n in payload.weights}, payload.weights)
    assert not torch.equal(loaded[0]["head.weight"], loaded[1]["head.weight"])


def test_no_student_is_global_so_each_clients_own_is_tried_on_common_images():
    (*_, last), _ = played()
    assert FedRep().evaluation_payload(last.state.server, None) is None
    assert set(last.row["accuracy"]) == {"clients", "common", "trained", "by_class"}


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 1.66425), ("uniform", 1.3525)])
def test_golden_mean_of_two_scalar_clients(weighting, expected):
    """Golden: tests/quadratics.py, n = (1, 3)."""
    replies = [tiny.reply(k, {"w": torch.tensor([w])}, n) for k, (w, n) in enumerate([(0.729, 1), (1.976, 3)])]
    strategy = FedRep(FedRep.Config(weighting=weighting))
    state, _ = strategy.aggregate(State({"w": torch.zeros(1)}), replies, STREAM)
    assert float(state.weights["w"]) == pytest.approx(expected, abs=1e-6)


def test_all_clients_receive_one_object(problem):
    payloads = FedRep().plan(FedRep().init(problem, STREAM), Cohort((0, 2), 1))
    assert payloads[0] is payloads[2]
