"""What a round evaluates, when, and what becomes of evaluations that fail."""

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from clients.supervised import Supervised
from fedkd import extensions
from fedkd.config import EvaluateConfig
from fedkd.engine import Job, failed
from fedkd.maths import metrics
from fedkd.training import forward
from strategies.fedavg import FedAvg
from strategies.local import Local


@pytest.mark.parametrize(
    ("every", "pooled_every", "own", "pooled"), [(1, 1, "1234", "1234"), (2, 3, "24", "34"), (9, 9, "4", "4")]
)
def test_evaluations_come_when_due_and_after_the_last_round(site, every, pooled_every, own, pooled):
    evaluate = EvaluateConfig(every=every, pooled_every=pooled_every, probe=0)
    played = tiny.play(tiny.experiment(FedAvg(), site, rounds=4, evaluate=evaluate), tiny.FakeEngine(site), count=4)
    assert "".join(str(p.row["round"]) for p in played if "clients" in p.row["accuracy"]) == own
    assert "".join(str(p.row["round"]) for p in played if "global" in p.row["accuracy"]) == pooled


def test_a_shared_head_is_evaluated_on_each_clients_own_extractor(site):
    head = FedAvg(FedAvg.Config(share="head"))
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(head, site), engine)[0]
    assert set(played.row["accuracy"]) == {"clients", "trained"}
    jobs = [job for job in engine.jobs if job.task == "evaluate"]
    for job in jobs:
        tiny.assert_same_weights(job.state.kept, played.state.clients[job.client].kept)
        tiny.assert_same_weights(job.payload.weights, played.state.server.weights)
    extractors = [tiny.canonical(state.kept) for state in played.state.clients.values()]
    assert extractors[0] != extractors[1] != extractors[2]


def measuring(site, *names, **changes):
    evaluate = EvaluateConfig(probe=0, metrics=[*names])
    return tiny.experiment(FedAvg(), site, evaluate=evaluate, pooled_labels=site.test.y, **changes)


def test_metrics_are_of_all_pooled_samples_however_they_are_parted(site, monkeypatch):
    engine = tiny.FakeEngine(site, order=lambda results: results[::-1])
    whole = tiny.play(measuring(site, "macro_f1", "confusion"), engine)[0]
    monkeypatch.setattr(forward, "POOLED_PART", 10)
    parts = tiny.play(measuring(site, "macro_f1", "confusion"), engine)[0]
    assert tiny.as_bytes(parts) == tiny.as_bytes(whole)
    matrix = torch.tensor(whole.row["accuracy"]["confusion"])
    assert int(matrix.sum()) == len(site.test)
    assert whole.row["accuracy"]["global"] == int(matrix.diag().sum()) / len(site.test)
    assert list(whole.row["accuracy"]["metrics"]) == ["macro_f1"]
    assert whole.unmeasured == {}


def test_a_metric_that_fails_is_null_and_the_round_goes_on(site):
    with extensions.kept():
        extensions.register("metric", "bad", lambda logits, y: 1 / 0)
        played = tiny.play(measuring(site, "bad", "ece"), tiny.FakeEngine(site))[0]
    assert played.row["accuracy"]["metrics"]["bad"] is None
    assert 0 <= played.row["accuracy"]["metrics"]["ece"] <= 1
    assert "ZeroDivisionError" in played.unmeasured["bad"]


def test_without_metrics_no_logits_travel_and_the_row_is_as_ever(site):
    engine = tiny.FakeEngine(site)
    played = tiny.play(measuring(site), engine)[0]
    assert not {"metrics", "confusion"} & played.row["accuracy"].keys()
    assert not any(job.wants_logits for job in engine.jobs)


def test_all_clients_are_evaluated_on_one_payload_object_where_all_are_served_alike(experiment, engine):
    """Engines send a payload once a worker."""
    tiny.play(experiment, engine)
    assert len({id(job.payload) for job in engine.jobs if job.task == "evaluate"}) == 1


def test_bytes_of_a_shared_head_are_the_heads(site):
    played = tiny.play(tiny.experiment(FedAvg(FedAvg.Config(share="head")), site), tiny.FakeEngine(site))[0]
    assert played.row["bytes"]["up"] == {"weights": 3 * 4 * (tiny.LATENT + 1) * tiny.CLASSES}


def test_local_statistics_stay_and_the_pooled_evaluation_uses_their_mean():
    problem = tiny.problem(tiny.normed, statistics="local")
    site = tiny.site(Supervised(), problem)
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(FedAvg(), site), engine)[0]
    (pooled,) = [job for job in engine.jobs if job.task == "evaluate_pooled"]
    for name in problem.statistic_names:
        each = torch.stack([state.kept[name] for state in played.state.clients.values()])
        assert len(each) == 3
        torch.testing.assert_close(pooled.payload.weights[name], each.mean(0))
    assert not set(problem.statistic_names) & set(played.state.server.weights)
    assert not [
        n for job in engine.jobs if job.task != "evaluate_pooled" for n in job.payload.weights if "running" in n
    ]


def test_averaged_statistics_are_part_of_the_global_student():
    problem = tiny.problem(tiny.normed)
    site = tiny.site(Supervised(), problem)
    played = tiny.play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0]
    assert set(problem.statistic_names) <= set(played.state.server.weights)
    assert all(state.kept == {} for state in played.state.clients.values())


def test_the_global_accuracy_is_over_all_parts_of_the_pooled_test_set(experiment, engine, monkeypatch):
    whole = tiny.play(experiment, engine)[0].row["accuracy"]
    monkeypatch.setattr("fedkd.training.forward.POOLED_PART", 10)
    parts = tiny.FakeEngine(engine.site)
    split = tiny.play(experiment, parts)[0].row["accuracy"]
    assert [job.client for job in parts.jobs if job.task == "evaluate_pooled"] == [0, 1, 2]
    assert split["global"] == whole["global"]
    assert split["loss"] == pytest.approx(whole["loss"])


def test_of_a_pooled_test_set_that_was_not_classified_whole_there_is_no_accuracy(experiment, site, monkeypatch):
    """Its parts differ: the accuracy of the others would be that of another test set."""
    monkeypatch.setattr("fedkd.training.forward.POOLED_PART", 10)

    def spoil(job: Job, result: Any) -> Any:
        return failed(job, "gone", "lost") if (job.task, job.client) == ("evaluate_pooled", 1) else result

    accuracy = tiny.play(experiment, tiny.FakeEngine(site, spoil=spoil))[0].row["accuracy"]
    assert set(accuracy) == {"clients", "trained"}


def test_a_client_without_test_data_is_left_out_of_the_accuracy(problem):
    site = tiny.site(Supervised(), problem, tests=(9, 0, 3))
    played = tiny.play(tiny.experiment(FedAvg(), site), tiny.FakeEngine(site))[0]
    assert "accuracy" not in played.clients[1]
    assert played.clients[1]["state"] == "ok"
    own = [played.clients[k]["accuracy"] for k in (0, 2)]
    assert played.row["accuracy"]["clients"]["mean"] == pytest.approx(sum(own) / 2)


def test_a_row_has_the_accuracy_of_trained_clients_beside_that_of_all(site):
    """One client a round: the others still have the student that everybody starts from."""
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(Local(), site, clients_per_round=1, rounds=9), engine, count=3)
    for number, its in enumerate(played, 1):
        accuracy, who = its.row["accuracy"], its.state.clients
        assert accuracy["trained"]["count"] == len(who) <= number
        own = [row["accuracy"] for row in its.clients if row["client"] in who]
        assert accuracy["trained"]["clients"]["mean"] == pytest.approx(sum(own) / len(own))
        assert accuracy["clients"]["mean"] == pytest.approx(sum(row["accuracy"] for row in its.clients) / 3)


def test_both_accuracies_are_the_same_once_all_clients_have_trained(experiment, engine):
    accuracy = tiny.play(experiment, engine)[0].row["accuracy"]
    assert accuracy["trained"] == {"count": 3, "clients": accuracy["clients"]}


def test_accuracy_by_class_is_over_the_pooled_test_set(experiment, engine, monkeypatch):
    monkeypatch.setattr("fedkd.training.forward.POOLED_PART", 10)
    accuracy = tiny.play(experiment, engine)[0].row["accuracy"]
    seen = torch.bincount(engine.site.test.y, minlength=tiny.CLASSES).tolist()
    assert sum(a * n for a, n in zip(accuracy["by_class"], seen, strict=True)) == pytest.approx(27 * accuracy["global"])


def test_without_a_global_student_accuracy_by_class_is_over_the_common_images(site):
    site = replace(site, common=torch.arange(12))
    found = tiny.play(tiny.experiment(Local(), site), tiny.FakeEngine(site))[0].row["accuracy"]
    seen = torch.bincount(site.test.y[:12], minlength=tiny.CLASSES).tolist()
    right = sum(a * n for a, n in zip(found["by_class"], seen, strict=True) if n)
    assert right == pytest.approx(12 * found["common"]["mean"])


def test_a_class_without_an_image_has_no_accuracy():
    assert metrics.by_class([torch.tensor([[2, 0], [1, 0]]), torch.tensor([[2, 0], [2, 0]])]) == [0.75, None]


def test_a_failed_evaluation_leaves_a_gap_not_a_zero(experiment, site):
    engine = tiny.FakeEngine(site, spoil=lambda job, r: failed(job, "gone", "lost") if job.task != "train" else r)
    played = tiny.play(experiment, engine)[0]
    assert played.row["accuracy"] == {}
    assert {failure.task for failure in played.failures} == {"evaluate", "evaluate_pooled"}
    assert played.row["clients"]["ok"] == 3


def test_a_diverged_evaluation_is_refused_not_averaged(experiment, site):
    def spoil(job: Job, result: Any) -> Any:
        if job.task == "evaluate" and job.client == 0:
            return replace(result, numbers={"correct": 1e9, "loss_sum": math.nan})
        return result

    played = tiny.play(experiment, tiny.FakeEngine(site, spoil=spoil))[0]
    assert "accuracy" not in played.clients[0]
    assert 0 <= played.row["accuracy"]["clients"]["pooled"] <= 1
