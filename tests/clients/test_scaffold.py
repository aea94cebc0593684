"""SCAFFOLD's client half: variates and corrections (docs/strategies/scaffold.md, equations 1 to 5)."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from clients import scaffold
from clients.scaffold import Scaffold
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.payload import Payload
from fedkd.training.optimisers import Sgd


def a_job(problem, c=0.0, own=None, numbers=None):
    """Client 0's, with all variates at a value."""
    student = problem.initial()
    reference = {name: torch.full_like(value, c) for name, value in student.weights.items() if "running" not in name}
    memory = {} if own is None else {"control": {name: torch.full_like(v, own) for name, v in reference.items()}}
    payload = Payload(weights=student.weights, reference=reference, numbers=numbers)
    return tiny.job(problem, payload=payload, state=ClientState(memory=memory))


def test_effective_steps_of_momentum_are_golden():
    """docs/strategies/scaffold.md, equation 4: 13.1441 for five steps of momentum 0.9."""
    assert scaffold.effective_steps(5, 0.9) == pytest.approx(13.1441, abs=1e-4)
    assert scaffold.effective_steps(7, 0.0) == 7


@given(st.integers(1, 40), st.floats(0, 0.99))
def test_effective_steps_are_how_far_a_constant_gradient_carries(steps, momentum):
    w = torch.zeros(1, dtype=torch.float64)
    sgd = Sgd([w], lr=1.0, momentum=momentum)
    for _ in range(steps):
        sgd.step([torch.ones(1, dtype=torch.float64)])
    assert -w.item() == pytest.approx(scaffold.effective_steps(steps, momentum))


def test_a_first_participation_is_corrected_by_c_alone_and_a_later_one_by_the_difference(problem):
    for own, expected in ((None, 3.0), (2.0, 1.0)):
        job = a_job(problem, 3.0, own)
        slope = scaffold.correction(job, job.state.memory.get("control", {}), 20)
        assert all(bool((value == expected).all()) for value in slope.values())


def test_where_sizes_count_a_small_client_is_corrected_more(problem):
    job = a_job(problem, 3.0, numbers={"mean_size": 40.0})
    assert all(bool((value == 6.0).all()) for value in scaffold.correction(job, {}, 20).values())


def test_one_step_moves_against_gradient_plus_c_minus_own(problem):
    one = replace(problem, train=replace(tiny.TRAIN, steps=1))
    corrected = tiny.fit(Scaffold(), a_job(one, 0.5, 0.2), tiny.site(Scaffold(), one))
    plain = tiny.fit(Supervised(), a_job(one), tiny.site(Supervised(), one))
    for name, value in plain.payload.weights.items():
        assert_close(corrected.payload.weights[name], value - 0.1 * 0.3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("own", [None, 0.2])
def test_the_variate_from_the_path_is_the_mean_uncorrected_gradient(problem, momentum, own):
    """Of a client whose gradient does not depend on the weights: exactly its gradient, whatever c and c_k were."""

    class Constant(Scaffold):
        def terms(self, student, batch, job):
            yield "ce", sum(p.sum() for p in student.learnable.values()) * 0.7
            yield from (term for term in super().terms(student, batch, job) if term[0] != "ce")

    problem = replace(problem, train=replace(tiny.TRAIN, momentum=momentum, steps=6))
    found = tiny.fit(Constant(), a_job(problem, 0.5, own), tiny.site(Constant(), problem))
    for name, value in found.state.memory["control"].items():
        assert_close(value, torch.full_like(value, 0.7), rtol=1e-4, atol=1e-5)
        assert_close(found.payload.reference[name], torch.full_like(value, 0.7 - (own or 0.0)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_the_variate_of_option_1_is_the_gradient_at_the_received_weights(make):
    problem = tiny.problem(make)
    client = Scaffold(Scaffold.Config(variate="gradient"))
    site = tiny.site(client, problem)
    found = tiny.fit(client, a_job(problem, 0.5, 0.2), site)
    student = problem.initial().eval()
    x, y = site.own(0)
    torch.nn.functional.cross_entropy(student(x), y).backward()
    for name, parameter in student.learnable.items():
        assert_close(found.state.memory["control"][name], parameter.grad)


def test_a_full_gradient_does_not_depend_on_the_portions_it_is_summed_in(problem, monkeypatch):
    client = Scaffold(Scaffold.Config(variate="gradient"))
    site = tiny.site(client, problem)
    whole = scaffold.full_gradient(site, a_job(problem))
    monkeypatch.setattr(scaffold, "EVALUATION_BATCH", 7)
    assert_close(dict(scaffold.full_gradient(site, a_job(problem))), dict(whole))


def test_option_1_leaves_statistics_alone():
    problem = tiny.problem(tiny.normed)
    one, other = (Scaffold(Scaffold.Config(variate=variate)) for variate in ("path", "gradient"))
    first, second = (tiny.fit(client, a_job(problem, 0.5, 0.2), tiny.site(client, problem)) for client in (one, other))
    tiny.assert_same_weights(first, second)


def test_terms_are_named_and_switched(problem):
    site = tiny.site(Scaffold(), problem)
    assert set(tiny.fit(Scaffold(), a_job(problem, 0.5), site).numbers) == {"ce", "correction"}
    off = Scaffold(Scaffold.Config(correction=0))
    assert set(tiny.fit(off, a_job(problem, 0.5), site).numbers) == {"ce"}
