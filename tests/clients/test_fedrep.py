"""FedRep's and FedPer's client half: invariants (docs/strategies/fedrep.md, equations 1 to 3)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.fedrep import FedRep
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.payload import Payload
from fedkd.training import optimisers
from fedkd.training.optimisers import Sgd

HARD = replace(tiny.TRAIN, steps=6, momentum=0.5, weight_decay=0.1)  # all that could move what is frozen


def fedrep(**config) -> FedRep:
    return FedRep(FedRep.Config(**config))


def body_of(entries):
    return {name: value for name, value in entries.items() if not name.startswith("head.")}


def head_of(entries):
    return {name: value for name, value in entries.items() if name.startswith("head.")}


def job_for(problem, **changes):
    return tiny.job(problem, **{"payload": Payload(weights=body_of(problem.initial().weights)), **changes})


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list:
    """Of each phase: how many steps, and the entries of the student after it."""
    found: list = []
    site, original = tiny.site(fedrep(), tiny.problem(tiny.normed, train=HARD)), optimisers.minimise

    def descend(optimiser, batches, terms):
        taken = list(batches)
        numbers = original(optimiser, iter(taken), terms)
        module = site._module("", "student")
        found.append(([len(batch.x) for batch in taken], dict(module.weights)))
        return numbers

    monkeypatch.setattr(optimisers, "minimise", descend)
    found.append(site)
    return found


def test_the_head_phase_leaves_the_body_and_its_statistics_untouched(phases):
    site = phases[0]
    tiny.fit(site.client, job_for(site.problem), site)
    (_, after_head), (_, after_body) = phases[1:]
    initial = site.problem.initial().weights
    tiny.assert_same_weights(body_of(after_head), body_of(initial))
    assert all(not torch.equal(after_head[name], value) for name, value in head_of(initial).items())
    assert not torch.equal(after_body["conv.1.running_mean"], initial["conv.1.running_mean"])


def test_the_body_phase_leaves_the_head_untouched(phases):
    site = phases[0]
    found = tiny.fit(site.client, job_for(site.problem), site)
    (_, after_head), (_, after_body) = phases[1:]
    tiny.assert_same_weights(head_of(after_body), head_of(after_head))
    tiny.assert_same_weights(found.state.kept, head_of(after_head))
    assert all(not torch.equal(after_body[name], value) for name, value in body_of(after_head).items())


@pytest.mark.parametrize(
    ("steps", "share", "expected"),
    [(6, 0.5, (3, 3)), (6, 0.9, (5, 1)), (6, 0.01, (1, 5)), (6, 0.99, (5, 1)), (2, 0.5, (1, 1)), (1, 0.5, (0, 1))],
)
def test_both_phases_share_the_steps_of_a_participation(phases, steps, share, expected):
    site = replace(phases[0], problem=replace(phases[0].problem, train=replace(HARD, steps=steps)))
    FedRep(FedRep.Config(head_share=share)).train(site, job_for(site.problem))
    assert tuple(len(taken) for taken, _ in phases[1:]) == expected


def test_in_epochs_a_share_can_be_whole_ones():
    """20 samples, four to a batch: of E = 4 epochs three are the head's, as in the authors' code."""
    problem = tiny.problem(train=replace(tiny.TRAIN, steps=None, epochs=4))
    site = tiny.site(fedrep(head_share=0.75), problem)
    found = tiny.fit(site.client, job_for(problem), site)
    assert (found.state.epoch, found.state.position) == (4, 0)


def test_the_head_learns_on_what_a_frozen_body_in_eval_mode_says():
    """Steps written out by hand: student in eval mode, the head's entries alone."""
    problem = tiny.problem(tiny.normed, train=HARD)
    site, job = tiny.site(fedrep(), problem), job_for(problem)
    found = tiny.fit(fedrep(), job, site)
    student, drawn = problem.initial().eval(), site.draw(job)
    head = [p for n, p in student.learnable.items() if n.startswith("head.")]
    sgd = Sgd(head, HARD.lr, HARD.momentum, HARD.weight_decay)
    for x, y in list(zip(drawn.x.split(4), drawn.y.split(4), strict=True))[:3]:
        loss = torch.nn.functional.cross_entropy(student(x), y)
        sgd.step(torch.autograd.grad(loss, head))
    assert_close(dict(found.state.kept), head_of(student.weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_fedper_is_supervised_training_of_both_at_once(make):
    problem = tiny.problem(make, train=HARD)
    site, job = tiny.site(Supervised(), problem), job_for(problem)
    joint = tiny.fit(fedrep(order="joint"), job, site)
    tiny.assert_same(tiny.lasting(joint), tiny.lasting(tiny.fit(Supervised(), job, site)))


@pytest.mark.parametrize("order", ["head_then_body", "joint"])
def test_the_head_stays_and_the_body_goes(order):
    problem = tiny.problem(tiny.normed)
    site = tiny.site(fedrep(order=order), problem)
    found = tiny.fit(site.client, job_for(problem), site)
    assert set(found.payload.weights) == set(body_of(problem.initial().weights))
    assert set(found.state.kept) == {"head.weight", "head.bias"}


def test_a_client_goes_on_with_the_head_it_kept(problem):
    kept = {"head.weight": torch.ones(tiny.CLASSES, tiny.LATENT), "head.bias": torch.zeros(tiny.CLASSES)}
    site = tiny.site(fedrep(), problem)
    fresh = tiny.fit(site.client, job_for(problem), site)
    again = tiny.fit(site.client, job_for(problem, state=ClientState(kept=kept)), site)
    assert not torch.equal(fresh.state.kept["head.weight"], again.state.kept["head.weight"])
    assert (again.state.kept["head.weight"] - 1).abs().max() < 0.5


def test_the_loss_in_the_ledger_is_the_mean_over_all_steps(monkeypatch):
    means = iter([{"ce": 2.0}, {"ce": 5.0}])
    monkeypatch.setattr(optimisers, "minimise", lambda *_: next(means))
    problem = tiny.problem()  # three steps: two of the head, one of the body
    site = tiny.site(fedrep(head_share=0.6), problem)
    assert tiny.fit(site.client, job_for(problem), site).numbers == {"ce": pytest.approx(3.0)}


def test_moments_that_are_kept_are_each_phases_own():
    problem = tiny.problem(train=replace(HARD, optimiser="adam", lr=0.01, moments="keep"))
    site = tiny.site(fedrep(head_share=0.34), problem)
    first = tiny.fit(site.client, job_for(problem), site).state
    second = tiny.fit(site.client, job_for(problem, round=2, state=first), site).state
    assert (first.optimiser["head"]["step"], first.optimiser["body"]["step"]) == (2, 4)
    assert (second.optimiser["head"]["step"], second.optimiser["body"]["step"]) == (4, 8)
    assert set(first.optimiser["head"]["mean"]) == {"head.weight", "head.bias"}
    assert set(first.optimiser["body"]["mean"]) == {"hidden.1.weight", "hidden.1.bias"}
    reset = tiny.fit(site.client, job_for(problem, round=2, state=replace(first, optimiser={})), site).state
    assert not torch.equal(reset.kept["head.weight"], second.kept["head.weight"])
