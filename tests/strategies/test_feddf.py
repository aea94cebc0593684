"""FedDF's server half: invariants (docs/strategies/feddf.md)."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients.feddf import FedDF as Client
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.border.checks import Refused
from fedkd.data.samples import Proxy
from fedkd.maths import losses
from fedkd.payload import Payload
from fedkd.training import forward
from fedkd.training.optimisers import Adaptive
from strategies import feddf
from strategies.fedavg import FedAvg
from strategies.feddf import FedDF

STREAM = seeds.stream(0, "test")
PUBLIC = Proxy("tiny", tiny.samples(30, seed=5), True, 12345)
UNLABELLED = replace(PUBLIC, is_labelled=False, samples=replace(PUBLIC.samples, y=torch.full((30,), -1)))
X = PUBLIC.samples.take(torch.arange(30))[0]


def strategy(**changes):
    return FedDF(FedDF.Config(**{"distil_steps": 10, **changes}))


def posed(make=tiny.plain, **changes):
    return tiny.problem(make, **{"proxy": PUBLIC, **changes})


def weights_of(problem, seed):
    return problem.student(seeds.stream(seed, "weights")).weights


def reply(client, weights, samples=None, size=1):
    return tiny.reply(client, payload=Payload(weights=weights, samples=samples or {}), num_examples=size)


def aggregate(problem, replies, **changes):
    its = strategy(**changes)
    return its.aggregate(its.init(problem, STREAM), replies, STREAM)


def test_identical_clients_have_nothing_to_teach():
    problem = posed()
    weights = weights_of(problem, 3)
    for count in (1, 3):
        after, findings = aggregate(problem, [reply(k, weights, size=k + 1) for k in range(count)])
        tiny.assert_same_weights(after.weights[""], weights)
        assert findings["gap_before"] == findings["gap_after"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("statistics", ["average", "local"])
def test_identical_clients_have_nothing_to_teach_with_batchnorm_either(statistics):
    problem = posed(tiny.normed, statistics=statistics)
    entries = problem.initial().weights
    stay = {name: value[None] + 0.5 for name, value in entries.items() if ".running_" in name}
    sent = problem.shared(entries)
    after, _ = aggregate(problem, [reply(k, sent, stay if statistics == "local" else {}) for k in range(3)])
    tiny.assert_same_weights(after.weights[""], sent)


def play(server, client, problem, count=3):
    site = tiny.site(client, problem)
    return tiny.play(tiny.experiment(server, site), tiny.FakeEngine(site), count)


@pytest.mark.parametrize("make", [tiny.plain, tiny.normed])
def test_no_steps_are_fedavg_to_the_last_bit(make):
    mine = play(strategy(distil_steps=0), Client(), posed(make))
    its = play(FedAvg(), Supervised(), posed(make))
    tiny.assert_same_weights(mine[-1].state.server.weights[""], its[-1].state.server.weights)
    assert [p.row["accuracy"] for p in mine] == [p.row["accuracy"] for p in its]


def test_the_average_comes_nearer_to_the_mean_of_logits():
    problem = posed()
    each = [weights_of(problem, seed) for seed in range(3)]
    replies = [reply(k, weights) for k, weights in enumerate(each)]
    after, findings = aggregate(problem, replies, distil_steps=200, distil_lr=1e-2)
    logits = torch.stack([forward.logits(problem.initial().load(w), X) for w in each])
    teacher = logits.mean(0).softmax(1)
    gap = float(losses.kl(teacher, forward.logits(problem.initial().load(after.weights[""]), X)))
    assert findings["gap_after"] == pytest.approx(gap, rel=1e-3, abs=1e-7)
    assert gap < 0.5 * findings["gap_before"]


def test_the_teacher_is_the_mean_of_logits_and_not_of_probabilities(monkeypatch):
    problem, seen = posed(), []
    monkeypatch.setattr(feddf, "measure", lambda student, x, teacher, y: (seen.append(teacher), {"gap": 0.0})[1])
    each = [weights_of(problem, seed) for seed in (1, 2)]
    scaled = [{name: 20 * value for name, value in weights.items()} for weights in each]
    aggregate(problem, [reply(k, weights) for k, weights in enumerate(scaled)])
    logits = torch.stack([forward.logits(problem.initial().load(w), X) for w in scaled])
    assert_close(seen[0], logits.double().mean(0).softmax(1))
    assert (seen[0] - logits.double().softmax(2).mean(0)).abs().max() > 0.01


def test_teachers_count_by_examples_if_asked(monkeypatch):
    problem, seen = posed(), []
    monkeypatch.setattr(feddf, "measure", lambda student, x, teacher, y: (seen.append(teacher), {"gap": 0.0})[1])
    each = [weights_of(problem, seed) for seed in (1, 2)]
    aggregate(problem, [reply(k, w, size=1 + 2 * k) for k, w in enumerate(each)], teachers="examples")
    one, two = (forward.logits(problem.initial().load(w), X).double() for w in each)
    assert_close(seen[0], (0.25 * one + 0.75 * two).softmax(1))


def test_the_ledger_has_the_averages_own_accuracy_before_and_after_it_is_taught():
    problem = posed()
    each = [weights_of(problem, seed) for seed in range(3)]
    replies = [reply(k, weights) for k, weights in enumerate(each)]
    after, findings = aggregate(problem, replies, distil_steps=200, distil_lr=0.05)
    average, _ = aggregate(problem, replies, distil_steps=0)
    for name, state in (("accuracy_before", average), ("accuracy_after", after)):
        said = forward.logits(problem.initial().load(state.weights[""]), X).argmax(1)
        assert findings[name] == pytest.approx(float((said == PUBLIC.samples.y).double().mean()))
    assert findings["accuracy_before"] != findings["accuracy_after"]


def test_a_student_that_is_moved_by_3_4_among_clients_at_distance_10_has_moved_by_half_of_it():
    average = {"a": torch.zeros(1), "b": torch.zeros(1), "bn.running_mean": torch.zeros(1)}
    taught = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "bn.running_mean": torch.full((1,), 100.0)}
    sent = [{**average, "a": torch.tensor([value])} for value in (10.0, -10.0)]
    found = feddf.movement(average, taught, [reply(k, weights) for k, weights in enumerate(sent)])
    assert found == {"moved": 5.0, "moved_ratio": 0.5}
    assert feddf.movement(average, average, [reply(0, average)]) == {"moved": 0.0}


def test_replies_and_the_old_state_are_left_as_they_were():
    problem = posed(tiny.normed)
    replies = [reply(k, weights_of(problem, k)) for k in range(2)]
    state = strategy().init(problem, STREAM)
    before = tiny.canonical([replies, state.weights])
    after, _ = strategy().aggregate(state, replies, STREAM)
    tiny.assert_same(tiny.canonical([replies, state.weights]), before)
    assert not any(value.requires_grad for value in after.weights[""].values())


def test_statistics_stay_the_averages_unless_they_may_move():
    problem = posed(tiny.normed)
    replies = [reply(k, weights_of(problem, k)) for k in range(2)]
    for statistics, is_same in (("frozen", True), ("moving", False)):
        after, _ = aggregate(problem, replies, statistics=statistics)
        mean = after.weights[""]["conv.1.running_mean"]
        assert torch.equal(mean, torch.zeros(2)) is is_same
        assert not torch.equal(after.weights[""]["head.bias"], replies[0].payload.weights["head.bias"])


def test_teachers_have_the_statistics_that_they_sent():
    problem = posed(tiny.normed, statistics="local")
    entries = problem.initial().weights
    stay = {name: value[None] + 1.5 for name, value in entries.items() if ".running_" in name}
    (found,) = feddf.all_logits(problem, [reply(0, problem.shared(entries), stay)], X)
    expected = forward.logits(problem.initial().load({name: value[0] for name, value in stay.items()}), X)
    assert torch.equal(found, expected)
    assert not torch.equal(found, forward.logits(problem.initial(), X))


def test_the_rate_falls_along_a_cosine_and_gradients_are_clipped(monkeypatch):
    rates, norms = [], []

    def step(self, gradients, lr, weight_decay=0.0):
        rates.append(lr)
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    monkeypatch.setattr(Adaptive, "step", step)
    problem = posed()
    scaled = [{n: 30 * v for n, v in weights_of(problem, seed).items()} for seed in (1, 2)]
    aggregate(problem, [reply(k, w) for k, w in enumerate(scaled)], distil_steps=4, distil_lr=1.0, distil_clip=0.01)
    assert rates == [pytest.approx(r, abs=1e-6) for r in (1.0, 0.853553, 0.5, 0.146447)]
    assert max(norms) <= 0.01 + 1e-6


MIXED = {"mixture": {"plain": tiny.plain, "normed": tiny.normed}, "assigned": ("plain", "normed", "plain")}


def test_groups_with_one_member_each_still_change():
    problem = posed(**MIXED)
    replies = [reply(0, weights_of(problem.of(0), 1)), reply(1, weights_of(problem.of(1), 2))]
    after, findings = aggregate(problem, replies)
    for client, name in ((0, "plain"), (1, "normed")):
        sent = replies[client].payload.weights
        assert not torch.equal(after.weights[name]["head.bias"], sent["head.bias"])
        assert set(after.weights[name]) == set(sent)
    assert findings["gap_after"] < findings["gap_before"]


def test_every_group_is_averaged_by_itself_and_one_without_replies_waits():
    problem = posed(**MIXED)
    state = strategy(distil_steps=0).init(problem, STREAM)
    one, two = weights_of(problem.of(0), 1), weights_of(problem.of(0), 2)
    after, _ = strategy(distil_steps=0).aggregate(state, [reply(0, one), reply(2, two, size=3)], STREAM)
    assert_close(after.weights["plain"]["head.bias"], 0.25 * one["head.bias"] + 0.75 * two["head.bias"])
    tiny.assert_same_weights(after.weights["normed"], state.weights["normed"])


def test_mixed_students_play_rounds_and_none_is_global():
    (played,) = play(strategy(), Client(), posed(statistics="local", **MIXED), 1)
    assert played.row["clients"]["ok"] == 3
    assert "global" not in played.row["accuracy"]


def test_one_is_global_where_all_are_alike():
    state = strategy().init(posed(), STREAM)
    assert strategy().evaluation_payload(state, None).weights is state.weights[""]
    assert strategy().evaluation_payload(state, 1).weights is state.weights[""]


def test_labels_are_for_the_ledger_only():
    one, with_labels = aggregate(posed(), [reply(k, weights_of(posed(), k)) for k in range(2)])
    two, without = aggregate(posed(proxy=UNLABELLED), [reply(k, weights_of(posed(), k)) for k in range(2)])
    tiny.assert_same_weights(one.weights[""], two.weights[""])
    for name in ("teacher_accuracy", "accuracy_before", "accuracy_after"):
        assert name in with_labels
        assert name not in without


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda s: {}, "names"),
        (lambda s: {**s, "other": torch.zeros(1)}, "names"),
        (lambda s: {n: v[0] for n, v in s.items()}, "shape"),
        (lambda s: {n: v.double() for n, v in s.items()}, "shape"),
        (lambda s: {n: v - 2 for n, v in s.items()}, "range"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(change, cause):
    problem = posed(tiny.normed, statistics="local")
    entries = problem.initial().weights
    stay = {name: value[None] for name, value in entries.items() if ".running_" in name}
    state, job = strategy().init(problem, STREAM), tiny.job(problem)
    strategy().inspect(state, job, reply(0, problem.shared(entries), stay))
    with pytest.raises(Refused) as refused:
        strategy().inspect(state, job, reply(0, problem.shared(entries), change(stay)))
    assert refused.value.cause == cause
