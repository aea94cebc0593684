"""FML's client half: invariants and a golden divergence (docs/strategies/fml.md, equations 1 and 2)."""

from dataclasses import replace

import pytest
import tiny
import torch

from clients.fml import FML
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.problem import Problem

ADAM = replace(tiny.TRAIN, optimiser="adam", lr=0.01, moments="keep")
APART = FML.Config(ce=1.0, kl=0.0, meme_ce=1.0, meme_kl=0.0)  # the paper's alpha = beta = 1


def mixed(**changes) -> Problem:
    """Client 0 has a student of an architecture that the server does not train."""
    both = {"plain": tiny.plain, "normed": tiny.normed}
    return tiny.problem(mixture=both, assigned=("normed", "plain", "normed"), **changes)


def participations(client, problem, payloads):
    """Replies of client 0 in as many rounds, its state going from one to the next."""
    site, state, found = tiny.site(client, problem), ClientState(), []
    for number, payload in enumerate(payloads, start=1):
        found.append(tiny.fit(client, tiny.job(problem, round=number, state=state, payload=payload), site))
        state = found[-1].state
    return found


def memes(problem, count: int = 3):
    """What comes down, differing from round to round."""
    first = problem.shared(problem.initial().weights)
    return [Payload(weights={n: v + 0.01 * k for n, v in first.items()}) for k in range(count)]


@pytest.mark.parametrize("train", [tiny.TRAIN, replace(tiny.TRAIN, momentum=0.9, weight_decay=0.1), ADAM])
@pytest.mark.parametrize("statistics", ["average", "local"])
def test_apart_the_private_student_trains_as_if_alone_and_the_meme_as_in_fedavg(train, statistics):
    problem = tiny.problem(tiny.normed, train=train, statistics=statistics)
    ours = participations(FML(APART), problem, memes(problem))
    alone = participations(Supervised(), problem, [Payload()] * 3)
    averaged = participations(Supervised(), problem, memes(problem))
    for mine, its, shared in zip(ours, alone, averaged, strict=True):
        tiny.assert_same_weights(mine.state.kept, its.state.kept)
        tiny.assert_same_weights(mine, shared)
        assert set(mine.numbers) == {"ce", "meme_ce"}
        assert mine.numbers["ce"] == its.numbers["ce"]
        assert mine.numbers["meme_ce"] == shared.numbers["ce"]


def test_apart_it_is_so_for_students_of_different_architectures():
    problem = mixed()
    ours = participations(FML(APART), problem, memes(problem))
    alone = participations(Supervised(), problem, [Payload()] * 3)
    plain = participations(Supervised(), tiny.problem(), memes(problem))
    for mine, its, shared in zip(ours, alone, plain, strict=True):
        tiny.assert_same_weights(mine.state.kept, its.state.kept)
        tiny.assert_same_weights(mine, shared)


def test_only_the_meme_goes_up_and_the_whole_private_student_stays():
    problem = mixed()
    site = tiny.site(FML(), problem)
    found = tiny.fit(site.client, tiny.job(problem, payload=memes(problem)[0]), site)
    assert set(found.payload.weights) == set(problem.initial().weights)
    assert set(found.state.kept) == set(problem.initial(0).weights)
    assert set(found.numbers) == {"ce", "kl", "meme_ce", "meme_kl"}


def test_equal_logits_teach_nothing():
    """At the first step of the first participation both students are the same."""
    problem = tiny.problem(tiny.normed, train=replace(tiny.TRAIN, steps=1))
    site = tiny.site(FML(), problem)
    numbers = tiny.fit(site.client, tiny.job(problem), site).numbers
    assert (numbers["kl"], numbers["meme_kl"]) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert numbers["ce"] == numbers["meme_ce"] > 0


def gradients(names):
    """Of the sum of these terms, with respect to the private student and to the meme."""
    problem = mixed()
    site = tiny.site(FML(), problem)
    private = problem.initial(0)
    meme = problem.initial()
    batch = Batch(*site.train.take(torch.arange(4)), 0, 4)
    loss = sum(value for name, value in FML().mutual(private, meme, batch) if name in names)
    return [
        torch.autograd.grad(loss, list(student.learnable.values()), allow_unused=True, retain_graph=True)
        for student in (private, meme)
    ]


def test_each_loss_reaches_its_own_student_only():
    """Peers are detached: a trap of other implementations."""
    of_private, of_meme = gradients({"ce", "kl"})
    assert all(g is not None for g in of_private)
    assert all(g is None for g in of_meme)
    of_private, of_meme = gradients({"meme_ce", "meme_kl"})
    assert all(g is None for g in of_private)
    assert all(g is not None for g in of_meme)


def test_golden_divergence_is_a_mean_over_the_batch_alone():
    """Golden, worked out apart from this code: teacher softmax of (1, 2, 3), (0, 0, 1); not 1/C of it."""
    teacher = torch.tensor([[1.0, 2, 3], [0, 0, 1]])
    logits = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), 0, 2)
    config = FML.Config(ce=0, kl=1, meme_ce=0, meme_kl=1)
    terms = dict(FML(config).mutual(lambda x: logits, lambda x: teacher, batch))
    assert float(terms["kl"]) == pytest.approx(0.315196, abs=1e-6)
    swapped = dict(FML(config).mutual(lambda x: teacher, lambda x: logits, batch))
    assert float(swapped["meme_kl"]) == pytest.approx(0.315196, abs=1e-6)


@pytest.mark.parametrize("key", ["ce", "kl", "meme_ce", "meme_kl"])
def test_each_term_is_weighed_by_the_key_of_its_name(key):
    logits, teacher = torch.tensor([[1.0, 0, 2]]), torch.tensor([[0.0, 3, 1]])
    batch = Batch(torch.zeros(1, 1), torch.tensor([0]), 0, 1)
    once, twice = (
        dict(FML(FML.Config(**{key: weight})).mutual(lambda x: logits, lambda x: teacher, batch))
        for weight in (0.3, 0.6)
    )
    assert float(twice[key]) == pytest.approx(2 * float(once[key]))
    assert all(float(twice[name]) == float(once[name]) for name in once if name != key)
    assert key not in dict(FML(FML.Config(**{key: 0})).mutual(lambda x: logits, lambda x: teacher, batch))


def test_what_the_meme_knows_reaches_the_private_student():
    """A meme that is sure of one label, and a private student that hears nothing else."""
    problem = tiny.problem(train=replace(tiny.TRAIN, steps=20))
    sure = problem.initial().weights | {"head.bias": torch.tensor([0.0, 9.0, 0.0])}
    config = FML.Config(ce=0, kl=1, meme_ce=0, meme_kl=0)
    site = tiny.site(FML(config), problem)
    found = tiny.fit(site.client, tiny.job(problem, payload=Payload(weights=sure)), site)
    tiny.assert_same_weights(found, sure)
    student, (x, _) = problem.initial().load(found.state.kept).eval(), site.own(0)
    assert bool((student(x).argmax(1) == 1).all())
    assert not bool((problem.initial().eval()(x).argmax(1) == 1).all())


def test_a_second_student_stands_beside_the_first():
    """Of the server's architecture, whatever the client's; neither overwrites the other."""
    problem = mixed()
    site = tiny.site(FML(), problem)
    moved = {"head.bias": torch.full((tiny.CLASSES,), 5.0)}
    own, beside = site.student(tiny.job(problem, payload=Payload())), site.beside(moved)
    tiny.assert_same_weights(own, problem.initial(0))
    tiny.assert_same_weights(beside, problem.initial().load(moved))
    assert beside.training
