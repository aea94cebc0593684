"""FML's server half: invariants (docs/strategies/fml.md, equation 3)."""

import pytest
import tiny
import torch

from clients import fml as half
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg
from strategies.fml import FML, State

STREAM = seeds.stream(0, "test")
APART = half.FML.Config(ce=1.0, kl=0.0, meme_ce=1.0, meme_kl=0.0)


def played(strategy, client, problem, count: int = 2):
    site = tiny.site(client, problem)
    engine = tiny.FakeEngine(site)
    return tiny.play(tiny.experiment(strategy, site), engine, count), engine


def mixed(**changes):
    both = {"plain": tiny.plain, "normed": tiny.normed}
    return tiny.problem(mixture=both, assigned=("normed", "plain", "normed"), **changes)


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 1.66425), ("uniform", 1.3525)])
def test_golden_mean_of_two_scalar_clients(weighting, expected):
    """Golden: tests/quadratics.py, n = (1, 3)."""
    replies = [tiny.reply(k, {"w": torch.tensor([w])}, n) for k, (w, n) in enumerate([(0.729, 1), (1.976, 3)])]
    strategy = FML(FML.Config(weighting=weighting))
    state, _ = strategy.aggregate(State({"w": torch.zeros(1)}, True), replies, STREAM)
    assert float(state.weights["w"]) == pytest.approx(expected, abs=1e-6)


def test_memes_are_averaged_alike_unless_said_otherwise():
    assert FML().config.weighting == "uniform"


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_apart_the_meme_is_fedavgs_student(make):
    """The paper's beta = 1."""
    ours, _ = played(FML(), half.FML(APART), tiny.problem(make))
    theirs, _ = played(FedAvg(FedAvg.Config(weighting="uniform")), Supervised(), tiny.problem(make))
    for mine, its in zip(ours, theirs, strict=True):
        tiny.assert_same_weights(mine.state.server.weights, its.state.server.weights)
        assert mine.row["accuracy"]["global"] == its.row["accuracy"]["global"]


def test_students_may_differ_and_only_the_servers_architecture_crosses():
    problem = mixed()
    (*_, last), engine = played(FML(), half.FML(), problem)
    meme = problem.initial().weights
    assert all(set(job.payload.weights) == set(meme) for job in engine.jobs if job.task == "train")
    for client, state in last.state.clients.items():
        assert set(state.kept) == set(problem.initial(client).weights)
    assert {"clients", "global"} <= set(last.row["accuracy"])
    assert not last.failures


def test_clients_are_judged_by_their_private_student_and_the_pooled_set_by_the_meme():
    problem = mixed()
    (*_, last), engine = played(FML(), half.FML(), problem)
    own = [job for job in engine.jobs if job.task == "evaluate" and job.client == 0][-1]
    tiny.assert_same_weights(engine.site.student(own), last.state.clients[0].kept)
    pooled = [job for job in engine.jobs if job.task == "evaluate_pooled"][-1]
    tiny.assert_same_weights(engine.site.student(pooled), last.state.server.weights)


def test_a_meme_without_statistics_of_its_own_is_not_served():
    strategy = FML()
    assert (
        strategy.evaluation_payload(strategy.init(tiny.problem(tiny.normed, statistics="local"), STREAM), None) is None
    )
    state = strategy.init(mixed(statistics="local"), STREAM)  # the server's architecture has none
    tiny.assert_same_weights(strategy.evaluation_payload(state, None).weights, mixed().initial())
    assert strategy.evaluation_payload(state, 0) is None


def test_all_clients_receive_one_object(problem):
    payloads = FML().plan(FML().init(problem, STREAM), Cohort((0, 2), 1))
    assert payloads[0] is payloads[2]
