"""FedProto's server half: invariants (docs/strategies/fedproto.md, equation 2)."""

from collections import OrderedDict

import pytest
import tiny
import torch
from torch import nn

from clients.fedproto import FedProto as Client
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.errors import ConfigError
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from fedkd.student import Student
from strategies.fedproto import FedProto
from strategies.local import Local

STREAM = seeds.stream(0, "test")


def wide() -> Student:
    """As tiny.plain, with a wider latent."""
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(tiny.SIDE * tiny.SIDE, 7), nn.Tanh())
    return Student(OrderedDict(hidden=hidden, head=nn.Linear(7, tiny.CLASSES)))


def reply(client, row, counts):
    payload = Payload(prototypes=torch.tensor([row] * 3), label_counts=torch.tensor(counts))
    return tiny.reply(client, payload=payload)


def strategy(**changes):
    return FedProto(FedProto.Config(**changes))


def start():
    return strategy().init(tiny.problem(), STREAM)


def test_a_single_client_gets_its_own_prototypes_back():
    after, _ = strategy().aggregate(start(), [reply(0, [1.0, 2.0, 3.0, 4.0], [2, 0, 5])], STREAM)
    assert after.prototypes.tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [1, 2, 3, 4]]
    assert after.counts.tolist() == [2, 0, 5]


@pytest.mark.parametrize(("aggregation", "expected"), [("uniform", [2, 1]), ("examples", [2.5, 1.5])])
def test_fused_alike_or_by_samples(aggregation, expected):
    """By hand. The paper's equation to the letter, (1.25, 0.75), would normalise twice."""
    replies = [reply(0, [1.0, 0.0, 0.0, 0.0], [1, 1, 1]), reply(1, [3.0, 2.0, 0.0, 0.0], [3, 3, 3])]
    after, _ = strategy(aggregation=aggregation).aggregate(start(), replies, STREAM)
    assert after.prototypes[0, :2].tolist() == expected


def test_a_class_that_is_absent_everywhere_never_gets_a_prototype():
    state = start()
    for round in range(3):
        state, findings = strategy().aggregate(state, [reply(0, [1.0 + round] * 4, [1, 0, 1])], STREAM)
    assert state.counts[1] == 0
    assert not state.prototypes[1].any()
    assert findings["labels_known"] == 2


def test_a_class_whose_holders_are_away_keeps_its_prototype():
    state, _ = strategy().aggregate(start(), [reply(0, [1.0] * 4, [1, 4, 1])], STREAM)
    state, _ = strategy().aggregate(state, [reply(1, [9.0] * 4, [1, 0, 1])], STREAM)
    assert state.prototypes[:, 0].tolist() == [9, 1, 9]
    assert state.counts.tolist() == [1, 4, 1]


def test_nobody_with_any_sample_leaves_everything_finite():
    state, findings = strategy().aggregate(start(), [reply(0, [0.0] * 4, [0, 0, 0])], STREAM)
    assert findings == {"labels_known": 0.0, "prototype_spread": 0.0}
    assert strategy().plan(state, Cohort((0,), 2))[0].kinds() == frozenset()


def test_the_spread_is_the_mean_distance_to_the_fused():
    replies = [reply(0, [0.0] * 4, [1, 0, 0]), reply(1, [3.0, 4.0, 0.0, 0.0], [1, 0, 0])]
    assert strategy().aggregate(start(), replies, STREAM)[1]["prototype_spread"] == pytest.approx(2.5)


def test_students_with_latents_of_different_width_are_refused():
    problem = tiny.problem(mixture={"plain": tiny.plain, "wide": wide}, assigned=("plain", "wide", "plain"))
    with pytest.raises(ConfigError, match="plain has 4, wide has 7"):
        strategy().init(problem, STREAM)


def test_students_that_differ_elsewhere_work_together():
    problem = tiny.problem(mixture={"plain": tiny.plain, "normed": tiny.normed}, assigned=("plain", "normed", "plain"))
    site = tiny.site(Client(), problem)
    played = tiny.play(tiny.experiment(strategy(), site), tiny.FakeEngine(site), 2)
    assert played[-1].row["clients"]["ok"] == 3
    assert "prototype" in played[-1].row["terms"]


def test_prototypes_are_served_to_clients_and_no_student_to_all():
    state, _ = strategy().aggregate(start(), [reply(0, [1.0] * 4, [1, 1, 1])], STREAM)
    assert strategy().evaluation_payload(state, 2).kinds() == {"prototypes", "label_counts"}
    assert strategy().evaluation_payload(state, None) is None


def test_without_a_pull_and_with_the_head_it_is_local_training():
    mine = tiny.site(Client(Client.Config(lam=0, inference="head")), tiny.problem())
    its = tiny.site(Supervised(), tiny.problem())
    one = tiny.play(tiny.experiment(strategy(), mine), tiny.FakeEngine(mine), 3)[-1]
    other = tiny.play(tiny.experiment(Local(), its), tiny.FakeEngine(its), 3)[-1]
    assert one.row["accuracy"] == other.row["accuracy"]
    for client in range(3):
        tiny.assert_same_weights(one.state.clients[client].kept, other.state.clients[client].kept)
