"""What frozen students say about the samples of a participation."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.payload import Payload
from fedkd.training import teachers

POSITION = torch.tensor([3, 1, 3, 0, 1, 3])
UNUSED = torch.empty(0)  # the samples as drawn: asked only if they are augmented


@pytest.mark.parametrize(("say", "width"), [(teachers.logits, tiny.CLASSES), (teachers.latents, tiny.LATENT)])
def test_every_sample_gets_its_own_row_however_often_it_is_drawn(problem, site, job, say, width):
    rows = say(site, job, UNUSED, POSITION)
    assert rows.shape == (6, width)
    for row, position in zip(rows, POSITION.tolist(), strict=True):
        assert_close(row, say(site, job, UNUSED, torch.tensor([position]))[0])
    assert_close(rows[0], rows[2], rtol=0, atol=0)


def test_rows_are_those_of_the_received_student_on_the_clients_own_images(problem, site):
    job = tiny.job(problem, client=2)
    x, _ = site.train.take(site.train_index[2][POSITION])
    assert_close(teachers.logits(site, job, UNUSED, POSITION), problem.initial()(x).detach())


def test_layers_lie_over_what_was_received_and_that_over_what_is_kept(problem, site):
    entries = problem.initial().weights
    high, low, kept = ({"head.bias": torch.full((tiny.CLASSES,), value)} for value in (9.0, 5.0, 1.0))
    job = tiny.job(problem, payload=Payload(weights={**entries, **low}), state=ClientState(kept=kept))
    received = teachers.logits(site, job, UNUSED, POSITION)
    assert_close(teachers.logits(site, job, UNUSED, POSITION, high), received + 4)
    alone = replace(job, payload=Payload())
    assert_close(teachers.logits(site, alone, UNUSED, POSITION), received - 4)


def test_a_teacher_is_in_eval_mode_and_its_statistics_stay():
    problem = tiny.problem(tiny.normed)
    site, job = tiny.site(Supervised(), problem), tiny.job(problem)
    x, _ = site.train.take(site.train_index[0][POSITION])
    assert_close(teachers.logits(site, job, UNUSED, POSITION), problem.initial().eval()(x).detach())
    tiny.assert_same_weights(site.frozen(0, job.payload.weights), problem.initial().weights)
    assert not teachers.logits(site, job, UNUSED, POSITION).requires_grad


def test_asking_leaves_the_student_being_trained_alone(problem, site, job):
    student = site.student(job)
    other = {name: value + 1 for name, value in job.payload.weights.items()}
    teachers.logits(site, job, UNUSED, POSITION, other)
    tiny.assert_same_weights(student, job.payload.weights)


def test_a_teacher_of_augmented_samples_sees_what_the_student_sees(problem, job):
    problem = replace(problem, train=replace(tiny.TRAIN, augment="noise"))
    site = tiny.site(Supervised(), problem)
    drawn = site.draw(job)
    found = teachers.logits(site, job, drawn.x, drawn.position)
    assert_close(found, problem.initial()(drawn.x).detach())
