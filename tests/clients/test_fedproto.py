"""FedProto's client half: invariants (docs/strategies/fedproto.md)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.fedproto import FedProto, last_epoch
from clients.supervised import Supervised
from fedkd.models.predictors import FAR
from fedkd.participation import Batch
from fedkd.payload import Payload
from fedkd.training import forward

PROTOTYPES = torch.arange(12.0).view(3, 4) / 10


def client(**changes) -> FedProto:
    return FedProto(FedProto.Config(**changes))


def told(job, counts=(1, 1, 1), prototypes=PROTOTYPES):
    return replace(job, payload=Payload(prototypes=prototypes, label_counts=torch.tensor(counts)))


def terms(problem, site, job, **changes):
    x, y = site.train.take(torch.arange(4))
    student = problem.initial()
    found = dict(client(**changes).terms(student, Batch(x, y, 0, 4), job))
    return {name: float(value.detach()) for name, value in found.items()}, student.features(x).detach(), y


def test_zero_lambda_is_local_training(site, job):
    mine = tiny.fit(client(lam=0.0), told(job), site)
    its = tiny.fit(Supervised(), replace(job, payload=Payload()), site)
    tiny.assert_same_weights(mine.state.kept, its.state.kept)
    assert mine.numbers == its.numbers


def test_the_term_is_the_mean_over_batch_and_coordinates_of_the_squared_distance(problem, site, job):
    found, z, y = terms(problem, site, told(job), lam=0.5)
    assert found["prototype"] == pytest.approx(0.5 * float((z - PROTOTYPES[y]).square().mean()), rel=1e-5)


def test_samples_without_a_prototype_count_as_zero_and_stay_in_the_mean(problem, site, job):
    found, z, y = terms(problem, site, told(job, counts=(1, 0, 1)))
    rows = y != 1
    expected = (z - PROTOTYPES[y])[rows].square().mean(1).sum() / len(y)
    assert found["prototype"] == pytest.approx(float(expected), rel=1e-5)


def test_before_the_first_table_there_is_no_term(problem, site, job):
    assert set(terms(problem, site, replace(job, payload=Payload()))[0]) == {"ce"}


def test_the_papers_prototypes_are_means_of_all_samples_in_eval_mode():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(Supervised(), problem)
    found = tiny.fit(client(), told(tiny.job(problem), (0, 0, 0)), site)
    x, y = site.own(0)
    z = forward.latents(problem.initial().load(found.state.kept), x)
    assert found.payload.label_counts.tolist() == torch.bincount(y, minlength=3).tolist()
    for label in range(3):
        assert_close(found.payload.prototypes[label], z[y == label].mean(0))


def test_the_codes_prototypes_are_of_the_last_epoch_as_it_was_trained_on():
    problem = tiny.problem(train=replace(tiny.TRAIN, steps=None, epochs=2, lr=1e-12))
    site = tiny.site(Supervised(), problem)
    found = tiny.fit(client(source="last_epoch"), told(tiny.job(problem)), site)
    x, y = site.own(0)
    z = problem.initial().features(x).detach()
    assert found.payload.label_counts.tolist() == torch.bincount(y, minlength=3).tolist()
    for label in range(3):
        assert_close(found.payload.prototypes[label], z[y == label].mean(0))


@pytest.mark.parametrize(("own", "expected"), [(20, 0), (12, 0), (11, 0), (8, 1), (5, 1), (4, 2), (1, 2)])
def test_the_last_epoch_are_the_last_steps_that_show_as_many_samples_as_there_are(site, job, own, expected):
    assert last_epoch(site.draw(job), own) == expected


def test_a_class_that_the_client_lacks_is_not_reported(problem, site, job):
    index = torch.arange(20)[site.train.y[:20] != 2]
    for source in ("all", "last_epoch"):
        found = tiny.fit(client(source=source), told(job), replace(site, train_index={0: index})).payload
        assert found.label_counts[2] == 0
        assert not found.prototypes[2].any()


def test_no_weights_go_up(site, job):
    assert tiny.fit(client(), told(job), site).payload.kinds() == {"prototypes", "label_counts"}


def test_the_nearest_prototype_gives_the_label_and_unseen_classes_never_do(problem, site, job):
    student = problem.initial().eval()
    x, _ = site.train.take(torch.arange(9))
    z = student.features(x)
    with torch.no_grad():
        found = tiny.predict(client(), student, x, told(job, counts=(1, 0, 1)))
    distance = ((z[:, None] - PROTOTYPES) ** 2).sum(2)
    assert_close(found[:, 0], -distance[:, 0])
    assert (found[:, 1] == FAR).all()
    assert torch.isfinite(found).all()
    assert not (found.argmax(1) == 1).any()


def test_the_head_decides_if_asked_to_and_before_the_first_table(problem, site, job):
    student = problem.initial().eval()
    x, _ = site.train.take(torch.arange(4))
    for its, given in ((client(inference="head"), told(job)), (client(), replace(job, payload=Payload()))):
        assert torch.equal(tiny.predict(its, student, x, given), student(x))
