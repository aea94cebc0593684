"""FedEnsemble's client half: what an ensemble answers (docs/strategies/fedensemble.md, equations 1 and 2)."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from clients.fedensemble import FedEnsemble
from clients.supervised import Supervised
from fedkd.payload import Payload

X = torch.zeros(2, 1, tiny.SIDE, tiny.SIDE)


def fedensemble(combine: str = "logits") -> FedEnsemble:
    return FedEnsemble(FedEnsemble.Config(combine=combine))


def saying(*logits: tuple[float, ...], copies: list[int] | None = None) -> Payload:
    """An ensemble of students that say the same of every image: a head of biases alone."""
    initial = tiny.problem().initial().weights
    members = {name: torch.zeros(len(logits), *value.shape) for name, value in initial.items()}
    members["head.bias"] = torch.tensor(logits)
    return Payload(samples={**members, "copies": torch.tensor(copies or [1] * len(logits))})


def answer(payload: Payload, combine: str = "logits", x: torch.Tensor = X, make=tiny.plain) -> torch.Tensor:
    problem = tiny.problem(make)
    with torch.inference_mode():
        return tiny.predict(fedensemble(combine), problem.initial().eval(), x, tiny.job(problem, payload=payload))


def drawn(count: int, make=tiny.plain) -> dict[str, torch.Tensor]:
    """Entries of students that differ, stacked."""
    initial, generator = tiny.problem(make).initial().weights, torch.Generator().manual_seed(1)
    return {n: v + torch.rand(count, *v.shape, generator=generator) for n, v in initial.items()}


def test_training_is_supervised(site, job):
    tiny.assert_same(tiny.lasting(tiny.fit(fedensemble(), job, site)), tiny.lasting(tiny.fit(Supervised(), job, site)))


def test_the_answer_is_that_of_the_sum_of_logits():
    """(4, 0, 0) and twice (0, 3, 0): 4 against 6."""
    assert_close(answer(saying((4.0, 0.0, 0.0), (0.0, 3.0, 0.0), copies=[1, 2]))[0], torch.tensor([4.0, 6.0, 0.0]) / 3)


def test_one_that_is_very_sure_outweighs_two_in_logits_but_not_in_probabilities():
    payload = saying((10.0, 0.0, 0.0), (0.0, 4.0, 0.0), (0.0, 4.0, 0.0))
    assert answer(payload).argmax(1).tolist() == [0, 0]
    assert answer(payload, "probabilities").argmax(1).tolist() == [1, 1]


def test_means_of_probabilities_are_probabilities_whose_log_is_given():
    payload = saying((10.0, 0.0, 0.0), (0.0, 4.0, 0.0))
    expected = payload.samples["head.bias"].softmax(1).mean(0)
    assert_close(answer(payload, "probabilities")[0].exp(), expected)


def test_what_no_member_thinks_possible_has_a_finite_loss():
    assert torch.isfinite(answer(saying((0.0, -500.0, -500.0)), "probabilities")).all()


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_equal_members_answer_as_one(combine, make):
    """With BatchNorm: by the statistics that come with the member, not those of the module."""
    one = {name: rows[0] for name, rows in drawn(1, make).items()}
    x = torch.rand(5, 1, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(2))
    found = answer(
        Payload(samples={**{n: torch.stack([v] * 3) for n, v in one.items()}, "copies": torch.ones(3)}),
        combine,
        x,
        make,
    )
    with torch.inference_mode():
        alone = tiny.problem(make).initial().load(one).eval()(x)
    assert_close(found.softmax(1), alone.softmax(1), rtol=1e-4, atol=1e-6)


@given(order=st.permutations(range(4)))
def test_the_order_of_members_does_not_matter(order):
    members = {**drawn(4), "copies": torch.tensor([1, 2, 1, 3])}
    x = torch.rand(5, 1, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(2))
    shuffled = Payload(samples={name: rows[list(order)] for name, rows in members.items()})
    assert_close(answer(shuffled, x=x), answer(Payload(samples=members), x=x))


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_copies_count_as_often_as_they_are(combine):
    members = drawn(2)
    x = torch.rand(5, 1, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(2))
    counted = Payload(samples={**members, "copies": torch.tensor([1, 3])})
    written_out = {name: rows[[0, 1, 1, 1]] for name, rows in members.items()}
    expected = answer(Payload(samples={**written_out, "copies": torch.ones(4, dtype=torch.int64)}), combine, x)
    assert_close(answer(counted, combine, x), expected)


def test_answering_leaves_the_student_and_the_payload_as_they_were(problem):
    payload, student = Payload(samples={**drawn(2), "copies": torch.ones(2)}), problem.initial().eval()
    before = tiny.canonical([dict(student.weights), payload])
    tiny.predict(fedensemble(), student, X, tiny.job(problem, payload=payload))
    tiny.assert_same(tiny.canonical([dict(student.weights), payload]), before)


def test_without_an_ensemble_the_student_answers(problem):
    student = problem.initial().eval()
    assert torch.equal(tiny.predict(fedensemble(), student, X, tiny.job(problem)), student(X))
