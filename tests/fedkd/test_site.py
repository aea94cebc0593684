"""What a site offers to algorithms with more than a loss: frozen students, answers known beforehand, other students."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.supervised import Supervised
from fedkd.client import Client
from fedkd.config import EvaluateConfig
from fedkd.engine import ClientState, Failure
from fedkd.models.predictors import Predictor
from fedkd.payload import Payload
from fedkd.training import forward
from fedkd.training.site import LocalSite
from strategies.fedavg import FedAvg

# What is known of the samples of a participation, and the rows of each step


class Knowing(Supervised):
    """Says of each sample its image, its label and where it lies, and compares that with what it is given."""

    def precompute(self, site, job, x, y, position):
        assert torch.equal(site.own(job.client)[0][position], x)
        assert torch.equal(site.own(job.client)[1][position], y)
        return {"x": x.clone(), "y": y.clone(), "position": position}

    def terms(self, student, batch, job):
        assert torch.equal(batch.per_sample["x"], batch.x)
        assert torch.equal(batch.per_sample["y"], batch.y)
        assert len(batch.per_sample["position"]) == len(batch.y)
        yield from super().terms(student, batch, job)


@pytest.mark.parametrize("client", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 3, None])
def test_rows_of_what_is_known_are_those_of_the_batch(client, steps):
    problem = tiny.problem(train=replace(tiny.TRAIN, steps=steps))
    site = tiny.site(Knowing(), problem)
    job = tiny.job(problem, client=client)
    found = tiny.fit(site.client, job, site)
    tiny.assert_same_weights(found, tiny.fit(Supervised(), job, site))


def test_it_is_asked_once_a_participation_about_all_samples_that_will_be_drawn(site, job):
    asked = []

    class Counting(Supervised):
        def precompute(self, site, job, x, y, position):
            asked.append(len(x))
            return {}

    tiny.fit(Counting(), job, site)
    assert asked == [tiny.TRAIN.batch * tiny.TRAIN.steps]


def test_without_it_nothing_is_known(site, job):
    class Ignorant(Supervised):
        def terms(self, student, batch, job):
            assert batch.per_sample == {}
            yield from super().terms(student, batch, job)

    assert Client().precompute(site, job, torch.empty(0), torch.empty(0), torch.empty(0)) == {}
    tiny.fit(Ignorant(), job, site)


# Students of the site


def test_a_frozen_student_is_another_than_the_one_that_trains(site, job):
    student = site.student(job)
    frozen = site.frozen(0, {"head.bias": torch.full((tiny.CLASSES,), 5.0)})
    assert frozen is not student
    assert not frozen.training
    assert frozen.weights["head.bias"].tolist() == [5, 5, 5]
    tiny.assert_same_weights(student.weights, site.problem.initial().weights)
    assert site.frozen(0).weights["head.bias"].tolist() != [5, 5, 5]


def test_two_roles_are_two_frozen_students(site):
    one, other = site.frozen(0, role="teacher"), site.frozen(0, role="ema")
    assert one is not other
    assert site.frozen(1, role="teacher") is one


def test_later_layers_lie_over_earlier_ones(site):
    ones, twos = ({"head.bias": torch.full((tiny.CLASSES,), value)} for value in (1.0, 2.0))
    assert site.frozen(0, ones, twos).weights["head.bias"].tolist() == [2, 2, 2]


@pytest.fixture
def mixed() -> LocalSite:
    """Client 1 has a normalised student, the others a plain one."""
    mixture = {"plain": tiny.plain, "normed": tiny.normed}
    problem = tiny.problem(mixture=mixture, assigned=("plain", "normed", "plain"), common_init=False)
    return tiny.site(Supervised(), problem)


def test_a_job_is_done_by_the_student_of_its_client(mixed):
    for client in range(3):
        job = tiny.job(mixed.problem, client=client, payload=Payload())
        tiny.assert_same_weights(mixed.student(job), mixed.problem.initial(client))
        tiny.assert_same_weights(mixed.frozen(client), mixed.problem.initial(client))
        kept = tiny.fit(mixed.client, job, mixed).state.kept
        assert list(kept) == list(mixed.problem.initial(client).weights)


def test_clients_with_students_of_their_own_change_nothing_for_each_other(mixed):
    jobs = [tiny.job(mixed.problem, client=client, payload=Payload()) for client in (0, 1, 2)]
    first = [tiny.lasting(tiny.fit(mixed.client, job, mixed)) for job in jobs]
    again = [tiny.lasting(tiny.fit(mixed.client, job, mixed)) for job in reversed(jobs)]
    assert first == again[::-1]


def test_the_global_student_of_a_mixture_is_the_servers(mixed):
    job = tiny.job(mixed.problem, task="evaluate_pooled", client=0, payload=Payload())
    tiny.assert_same_weights(mixed.student(job), mixed.problem.initial(None))


def test_logits_and_latents_of_many_images_are_those_of_one_pass(site):
    student = site.problem.initial().train()
    x = tiny.samples(600).take(torch.arange(600))[0]
    assert_close(forward.logits(student, x), student.eval()(x))
    assert_close(forward.latents(student, x), student.features(x))
    assert not forward.logits(student, x).requires_grad


def test_counts_and_samples_of_a_client(site):
    assert site.label_counts(1).tolist() == [4, 4, 4]
    x, y = site.own(2)
    assert (len(x), len(y)) == (7, 7)
    assert_close(x, site.train.take(site.train_index[2])[0])


# Evaluation


def test_a_client_may_classify_in_its_own_way(site, job):
    class One(Predictor):
        def forward(self, members, x):
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3)

    class Sure(Supervised):
        def predictor(self, job):
            return One()

    found = replace(site, client=Sure()).run(replace(job, task="evaluate"))
    share = (site.test.y[site.test_index[0]] == 1).sum()
    assert found.numbers["correct"] == share
    assert replace(site, client=Sure()).score(Sure(), site.student(job), job) == share / 9


def test_the_score_of_a_student_is_what_an_evaluation_finds(site, job):
    found = site.run(replace(job, task="evaluate"))
    assert site.score(site.client, site.student(job).train(), job) == found.numbers["correct"] / found.num_examples


def test_on_common_images_each_client_uses_its_own_student(problem):
    site = replace(tiny.site(Supervised(), problem), common=torch.arange(5))
    own = {"head.bias": torch.tensor([0.0, 99.0, 0.0])}
    job = tiny.job(problem, task="evaluate_common", payload=Payload(), state=ClientState(kept=own))
    found = site.run(job)
    assert (found.num_examples, found.numbers["correct"]) == (5, float((site.test.y[:5] == 1).sum()))


def test_without_common_images_there_is_nothing_to_evaluate(site, job):
    found = site.run(replace(job, task="evaluate_common"))
    assert isinstance(found, Failure)
    assert found.cause == "no_data"


class Personal(FedAvg):
    """Nobody's student is global."""

    def evaluation_payload(self, state, client):
        return None if client is None else super().evaluation_payload(state, client)


def measured(strategy, site, **evaluate):
    config = EvaluateConfig(probe=0, **evaluate)
    engine = tiny.FakeEngine(site)
    return tiny.play(tiny.experiment(strategy, site, evaluate=config), engine)[0], engine


def test_where_no_student_is_global_each_is_tried_on_the_same_images(problem):
    site = replace(tiny.site(Supervised(), problem), common=torch.arange(12))
    played, engine = measured(Personal(), site)
    assert set(played.row["accuracy"]) == {"clients", "common", "trained", "by_class"}
    jobs = {task: [job for job in engine.jobs if job.task == task] for task in ("evaluate", "evaluate_common")}
    for own, common in zip(jobs["evaluate"], jobs["evaluate_common"], strict=True):
        assert (own.client, own.payload, own.state) == (common.client, common.payload, common.state)
    each = [row["common"] for row in played.clients]
    assert played.row["accuracy"]["common"]["mean"] == pytest.approx(sum(each) / 3)


def test_where_one_is_global_or_none_wanted_they_are_not(problem):
    site = replace(tiny.site(Supervised(), problem), common=torch.arange(12))
    assert "common" not in measured(FedAvg(), site)[0].row["accuracy"]
    assert "common" not in measured(Personal(), site, common=0)[0].row["accuracy"]


def test_common_images_come_when_the_pooled_test_set_would(problem):
    site = replace(tiny.site(Supervised(), problem), common=torch.arange(12))
    assert "common" not in measured(Personal(), site, pooled_every=3)[0].row["accuracy"]


def test_other_kinds_reach_the_client_that_classifies(problem):
    seen = []

    class Looking(Supervised):
        def predictor(self, job):
            seen.append((job.task, job.payload.kinds(), job.state.last_round))
            return super().predictor(job)

    class Priors(FedAvg):
        def evaluation_payload(self, state, client):
            return replace(super().evaluation_payload(state, client), label_counts=torch.tensor([1, 2, 3]))

    measured(Priors(), tiny.site(Looking(), problem))
    assert set(seen) == {
        ("evaluate", frozenset({"weights", "label_counts"}), 1),
        ("evaluate_pooled", frozenset({"weights", "label_counts"}), 0),
    }
