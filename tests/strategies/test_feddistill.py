"""FedDistill's server halves: invariants (docs/strategies/feddistill.md, equation 2)."""

import tiny
import torch

from clients.feddistill import FedDistill as Client
from clients.supervised import Supervised
from fedkd import seeds
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.fedavg import FedAvg
from strategies.feddistill import FedDistill
from strategies.feddistill_plus import FedDistillPlus

STREAM = seeds.stream(0, "test")
ROWS = ([2.0, 0.0, 0.0], [0.0, 4.0, 0.0], [4.0, 2.0, 3.0])


def reply(client, row, counts=(1, 1, 1)):
    table = torch.tensor([row] * 3)
    return tiny.reply(client, payload=Payload(class_logits=table, label_counts=torch.tensor(counts)))


def after(strategy, replies):
    return strategy.aggregate(strategy.init(tiny.problem(), STREAM), replies, STREAM)


def strategy(**changes):
    return FedDistill(FedDistill.Config(**changes))


def test_nothing_goes_down_before_anything_came_up():
    found = strategy().plan(strategy().init(tiny.problem(), STREAM), Cohort((0, 1), 1))
    assert found[0].kinds() == frozenset()
    assert found[0] is found[1]


def test_all_get_the_mean_and_the_paper_leaves_out_the_clients_own():
    replies = [reply(k, row) for k, row in enumerate(ROWS)]
    state, _ = after(strategy(), replies)
    assert strategy().plan(state, Cohort((0, 1, 2), 2))[0].class_logits[0].tolist() == [2, 2, 1]
    paper = strategy(leave_one_out=True).plan(state, Cohort((0, 1, 2), 2))
    assert paper[0].class_logits[0].tolist() == [2, 3, 1.5]


def test_one_client_alone_is_told_nothing_by_others():
    state, _ = after(strategy(leave_one_out=True), [reply(0, ROWS[0])])
    payload = strategy(leave_one_out=True).plan(state, Cohort((0,), 2))[0]
    assert payload.label_counts.tolist() == [0, 0, 0]
    assert torch.isfinite(payload.class_logits).all()


def test_a_label_nobody_has_is_marked_and_counted():
    state, findings = after(strategy(), [reply(0, ROWS[0], (5, 0, 0)), reply(1, ROWS[1], (0, 3, 0))])
    payload = strategy().plan(state, Cohort((2,), 2))[2]
    assert payload.label_counts.tolist() == [1, 1, 0]
    assert payload.class_logits[0].tolist() == ROWS[0]
    assert findings == {"labels_known": 2.0, "table_accuracy": 1.0}


def test_rows_by_samples_and_over_all_senders():
    replies = [reply(0, ROWS[0], (1, 1, 1)), reply(1, ROWS[1], (3, 1, 0))]
    for mean, first, last in (("examples", [0.5, 3, 0], [2, 0, 0]), ("senders", [1, 2, 0], [1, 2, 0])):
        state, _ = after(strategy(mean=mean), replies)
        payload = strategy(mean=mean).plan(state, Cohort((2,), 2))[2]
        assert payload.class_logits[0].tolist() == first
        assert payload.class_logits[2].tolist() == last


def test_no_student_is_served():
    state, _ = after(strategy(), [reply(0, ROWS[0])])
    assert strategy().evaluation_payload(state, None) is None
    assert strategy().evaluation_payload(state, 0) is None


def play(server, client, count=3):
    site = tiny.site(client, tiny.problem())
    return tiny.play(tiny.experiment(server, site), tiny.FakeEngine(site), count)


def test_plus_without_distillation_is_fedavg():
    mine = play(FedDistillPlus(), Client(Client.Config(gamma=0)))
    its = play(FedAvg(), Supervised())
    tiny.assert_same_weights(mine[-1].state.server.weights, its[-1].state.server.weights)
    assert [p.row["accuracy"] for p in mine] == [p.row["accuracy"] for p in its]


def test_plus_with_distillation_is_not():
    mine, its = play(FedDistillPlus(), Client()), play(FedAvg(), Supervised())
    assert not torch.equal(mine[-1].state.server.weights["head.bias"], its[-1].state.server.weights["head.bias"])


def test_a_table_that_is_not_finite_is_refused_and_the_round_goes_on():
    def spoil(job, result):
        if job.task == "train" and job.client == 1:
            result.payload.class_logits[0, 0] = float("nan")
        return result

    site = tiny.site(Client(), tiny.problem())
    (played,) = tiny.play(tiny.experiment(strategy(), site), tiny.FakeEngine(site, spoil=spoil))
    assert played.row["clients"] == {"ok": 2, "failed": 0, "late": 0, "rejected": 1}
    assert played.state.server.tables.clients.tolist() == [0, 2]


def test_head_only_serves_no_global_student():
    head = FedDistillPlus(FedDistillPlus.Config(share="head"))
    state = head.init(tiny.problem(), STREAM)
    assert head.evaluation_payload(state, None) is None
    assert set(head.evaluation_payload(state, 0).weights) == {"head.weight", "head.bias"}
