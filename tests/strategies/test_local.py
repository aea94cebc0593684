"""Local training: invariants (docs/strategies/local.md)."""

import itertools
from dataclasses import replace

import pytest
import tiny
import torch

from clients.supervised import Supervised
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.local import Local


def test_nothing_crosses(site):
    played = tiny.play(tiny.experiment(Local(), site), tiny.FakeEngine(site), count=2)
    for each in played:
        assert each.row["bytes"] == {"down": {}, "up": {}}
        assert each.row["clients"]["ok"] == 3
        assert not [failure for failure in each.failures if failure.task == "train"]


def test_a_client_never_changes_when_another_clients_data_change(site):
    other = replace(site, train=replace(site.train, x=site.train.x.clone()))
    other.train.x[site.train_index[0]] = 7
    ends = [
        tiny.play(tiny.experiment(Local(), s), tiny.FakeEngine(s), count=3)[-1].state.clients for s in (site, other)
    ]
    for client in (1, 2):
        tiny.assert_same(tiny.canonical(ends[0][client]), tiny.canonical(ends[1][client]))
    with pytest.raises(AssertionError):
        tiny.assert_same(tiny.canonical(ends[0][0]), tiny.canonical(ends[1][0]))


def test_rounds_of_three_steps_are_one_participation_of_all_steps(problem, site):
    """Without momentum: what a client is left with is what training alone without rounds would give."""
    kept = tiny.play(tiny.experiment(Local(), site), tiny.FakeEngine(site), count=4)[-1].state.clients[0].kept
    long = tiny.site(Supervised(), replace(problem, train=replace(tiny.TRAIN, steps=12)))
    found = tiny.fit(Supervised(), tiny.job(problem, payload=Payload()), long)
    tiny.assert_same_weights(kept, found.state.kept)


def test_a_client_trains_in_the_rounds_in_which_it_is_selected_only(site):
    experiment = tiny.experiment(Local(), site, clients_per_round=1)
    played = tiny.play(experiment, tiny.FakeEngine(site), count=3)
    for before, after in itertools.pairwise(played):
        for client in before.state.clients:
            if client not in after.row["cohort"]:
                assert after.state.clients[client] is before.state.clients[client]
    assert [len(p.row["cohort"]) for p in played] == [1, 1, 1]


def test_clients_are_judged_by_what_they_keep_on_their_own_and_on_common_images(site):
    common = replace(site, common=torch.arange(5))
    (played,) = tiny.play(tiny.experiment(Local(), common), tiny.FakeEngine(common))
    assert set(played.row["accuracy"]) == {"clients", "common", "trained", "by_class"}
    assert all({"accuracy", "common"} <= set(row) for row in played.clients)


def test_all_start_from_the_same_weights(problem, site):
    jobs = tiny.FakeEngine(site)
    tiny.play(tiny.experiment(Local(), site), jobs)
    for job in jobs.jobs[:3]:
        tiny.assert_same_weights(site.student(job).weights, problem.initial().weights)


def test_everybody_gets_the_same_nothing(problem):
    plan = Local().plan(Local().init(problem, tiny.seeds.stream(0, "server")), Cohort((0, 2), 1))
    assert plan[0] is plan[2]
    assert not plan[0].kinds()
