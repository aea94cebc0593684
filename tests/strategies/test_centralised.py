"""Centralised training: invariants (docs/strategies/centralised.md)."""

from dataclasses import replace

import algorithms
import pytest
import tiny
import torch

from clients.centralised import Centralised as Client
from clients.supervised import Supervised
from fedkd.engine import Failure
from fedkd.errors import ConfigError, RunError
from fedkd.strategy import Cohort
from simulations import assemble
from strategies.centralised import Centralised
from strategies.fedavg import FedAvg


def pooled(problem, sizes=(20, 12, 7)):
    """A site whose client 0 holds everybody's samples."""
    site = tiny.site(Client(), problem, sizes)
    return replace(site, train_index={**site.train_index, 0: torch.cat(list(site.train_index.values()))})


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
@pytest.mark.parametrize("train", [{}, {"steps": None, "epochs": 3}, {"optimiser": "adam", "moments": "keep"}])
def test_it_is_fedavg_with_one_client_that_holds_everything(make, train):
    problem = tiny.problem(make, clients=1, train=replace(tiny.TRAIN, **train))
    alone, fed = (tiny.site(half, problem, sizes=(30,)) for half in (Client(), Supervised()))
    ours = tiny.play(tiny.experiment(Centralised(), alone), tiny.FakeEngine(alone), count=3)
    theirs = tiny.play(tiny.experiment(FedAvg(), fed), tiny.FakeEngine(fed), count=3)
    for one, other in zip(ours, theirs, strict=True):
        tiny.assert_same_weights(one.state.server.weights, other.state.server.weights)
        assert one.row["accuracy"] == other.row["accuracy"]
        assert one.row["terms"] == other.row["terms"]


def test_the_holder_trains_whether_or_not_it_is_in_the_cohort(problem):
    state = Centralised().init(problem, tiny.seeds.stream(0, "server"))
    for cohort in ((1, 2), (0, 1)):
        plan = Centralised().plan(state, Cohort(cohort, 1))
        assert list(plan) == [0]
        assert plan[0].numbers == {"budget": 2.0}


def test_every_round_trains_whoever_is_drawn(problem):
    site = pooled(problem)
    experiment = tiny.experiment(Centralised(), site, clients_per_round=1)
    played = tiny.play(experiment, tiny.FakeEngine(site), count=4)
    assert [p.row["cohort"] for p in played] == [[0]] * 4
    assert [p.row["clients"]["ok"] for p in played] == [1] * 4
    assert algorithms.distinct([tiny.canonical(p.state.server) for p in played]) == 4


def test_the_pooled_student_is_tried_on_the_pooled_test_set_and_on_each_clients_own(problem):
    site = pooled(problem)
    (played,) = tiny.play(tiny.experiment(Centralised(), site), tiny.FakeEngine(site))
    assert set(played.row["accuracy"]) == {"clients", "global", "loss", "trained", "by_class"}
    assert all("accuracy" in row for row in played.clients)
    assert len(played.clients) == 3


def test_a_quorum_of_clients_does_not_apply_to_one_holder(problem):
    site = pooled(problem)
    experiment = tiny.experiment(Centralised(), site, quorum=3)
    assert tiny.play(experiment, tiny.FakeEngine(site))[0].row["clients"]["ok"] == 1


def test_a_holder_that_fails_ends_the_run(problem):
    site = pooled(problem)
    fail = tiny.FakeEngine(site, spoil=lambda job, result: Failure(client=0, round=1, what="gone", cause="lost"))
    with pytest.raises(RunError, match="only 0 of 1"):
        tiny.play(tiny.experiment(Centralised(), site), fail)


def test_statistics_travel_even_where_clients_keep_their_own():
    """Or all clients but the holder would be evaluated with statistics that nobody trained."""
    problem = tiny.problem(tiny.normed, statistics="local")
    site = pooled(problem)
    engine = tiny.FakeEngine(site)
    (played,) = tiny.play(tiny.experiment(Centralised(), site), engine)
    names = set(problem.statistic_names)
    assert names
    for job in engine.jobs:
        assert names <= set(job.payload.weights)
    for name in names:
        assert not torch.equal(played.state.server.weights[name], problem.initial().weights[name])


def test_assembled_client_0_holds_all_training_samples_and_tests_as_before():
    words = ("strategy=centralised",)
    assembly = assemble.assemble(algorithms.configure(words))
    held = assembly.partition
    assert sorted(assembly.site.train_index[0].tolist()) == sorted(i for part in held.train for i in part.tolist())
    assert assembly.site.test_index[0].tolist() == held.test[0].tolist()


def test_the_label_law_of_the_holder_is_everybodys():
    assembly = assemble.assemble(algorithms.configure(("strategy=centralised",)))
    train = assembly.dataset.train.y[assembly.site.train_index[0]]
    expected = torch.bincount(train, minlength=10).double() / len(train)
    torch.testing.assert_close(assembly.experiment.label_distributions[0], expected)


def test_students_that_differ_are_refused_even_by_groups():
    """One student cannot be of two architectures."""
    config = algorithms.configure(
        ("strategy=centralised",), "students={mlp: 0.5, lenet5: 0.5}", "students.mixed=groups"
    )
    with pytest.raises(ConfigError, match="centralised"):
        assemble.assemble(config)
