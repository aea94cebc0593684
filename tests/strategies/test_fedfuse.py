"""FedFuse's server half: what is fused for whom, what is refused, and images where there is no public set.

The invariants of the rules themselves are in tests/fedkd/maths/test_fusion.py.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from torch.testing import assert_close

from clients import fedfuse as client_half
from fedkd import seeds
from fedkd.border import checks
from fedkd.data.samples import Proxy
from fedkd.engine import Reply
from fedkd.errors import ConfigError
from fedkd.maths import affinity, fusion
from fedkd.models import students
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.fedfuse import FedFuse, State

STREAM = seeds.stream(0, "test")
PUBLIC = Proxy("public", tiny.samples(12, seed=9), is_labelled=True, checksum=12345)
PROBLEM = tiny.problem(proxy=PUBLIC)
COUNTS = [[4, 0, 1], [0, 9, 0], [1, 2, 6]]


def strategy(**changes: Any) -> FedFuse:
    return FedFuse(FedFuse.Config(**changes))


def begin(chosen: FedFuse, problem=PROBLEM) -> State:
    return chosen.init(problem, STREAM)


def answer(client: int, counts: list[int], seed: int | None = None, **changes: Any) -> Reply:
    draw = seeds.stream(client if seed is None else seed, "answers").torch()
    payload = Payload(
        probe_logits=3 * torch.randn(12, 3, generator=draw), samples={}, label_counts=torch.tensor(counts)
    )
    return replace(tiny.reply(client), payload=payload, **changes)


ANSWERS = [answer(k, counts) for k, counts in enumerate(COUNTS)]
LOGS = torch.stack([r.payload.probe_logits for r in ANSWERS]).log_softmax(2)


def fused(chosen: FedFuse, answers: list[Reply], problem=PROBLEM) -> tuple[State, dict[str, Any]]:
    after, findings = chosen.aggregate(begin(chosen, problem), answers, STREAM)
    return after, dict(findings)


def teacher(state: State) -> torch.Tensor:
    """F (R, N, C)."""
    assert state.knowledge is not None
    return state.knowledge.log_RNC.exp()


# What is fused


@pytest.mark.parametrize("rule", fusion.RULES)
def test_it_fuses_by_the_rule_that_is_asked_for_and_trusts_by_label_counts(rule):
    after, _ = fused(strategy(fuse=rule), ANSWERS)
    assert_close(teacher(after), fusion.RULES[rule](LOGS, fusion.by_holders(torch.tensor(COUNTS))))


def test_without_trust_trust_prob_is_plain_averaging_of_predictions():
    """With the prior kept and gamma 0 at the clients, that is FedMD-style averaging."""
    after, findings = fused(strategy(fuse="trust_prob", trust="uniform", prior_free=False), ANSWERS)
    assert_close(teacher(after)[0], LOGS.exp().mean(0))
    assert findings["effective_senders"] == pytest.approx(3)


def test_without_trust_trust_logit_is_the_normalised_geometric_mean():
    after, _ = fused(strategy(trust="uniform"), ANSWERS)
    assert_close(teacher(after)[0], LOGS.mean(0).softmax(1))


def test_beta_zero_is_one_object_for_all_and_a_positive_one_a_teacher_for_each():
    for beta, distinct in ((0.0, 1), (5.0, 3)):
        chosen = strategy(beta=beta)
        after, findings = fused(chosen, ANSWERS)
        plan = chosen.plan(after, Cohort((0, 1, 2), 1, 1))
        assert len({id(payload) for payload in plan.values()}) == distinct
        assert ("trust" in findings) == (beta > 0)


def test_beta_on_equal_trust_gives_knfus_weights():
    equal = [replace(r, payload=replace(r.payload, label_counts=torch.tensor([5, 5, 5]))) for r in ANSWERS]
    after, findings = fused(strategy(beta=2.0, fuse="trust_prob"), equal)
    weights = affinity.weights(affinity.distance(affinity.epd(LOGS.exp())), 2.0)
    assert_close(teacher(after), torch.einsum("rk,knc->rnc", weights.float(), LOGS.exp()))
    assert_close(torch.tensor(findings["trust"]), weights.float(), atol=1e-4, rtol=0)


def test_a_receiver_that_failed_is_planned_for_no_more_and_the_others_get_their_own():
    chosen = strategy(beta=5.0)
    after, _ = fused(chosen, ANSWERS)
    plan = chosen.plan(after, Cohort((0, 2), 1, 1))
    assert_close(plan[2].probe_logits, after.knowledge.log_RNC[2])
    assert set(plan) == {0, 2}


def test_a_client_without_counts_is_no_sender_but_receives():
    """With the bytes that the others' knowledge has without it."""
    for beta in (0.0, 3.0):
        chosen = strategy(beta=beta)
        after, _ = fused(chosen, [ANSWERS[0], answer(1, [0, 0, 0]), ANSWERS[2]])
        without, _ = fused(chosen, [ANSWERS[0], ANSWERS[2]])
        receivers = [0, 2] if beta else [0]
        tiny.assert_same(tiny.canonical(after.knowledge.log_RNC[receivers]), tiny.canonical(without.knowledge.log_RNC))
        assert 1 in chosen.plan(after, Cohort((0, 1, 2), 1, 1))


def test_labels_nobody_holds_are_masked_and_the_mask_goes_down():
    chosen = strategy()
    after, findings = fused(chosen, [answer(0, [3, 0, 1]), answer(1, [1, 0, 1])])
    payload = chosen.plan(after, Cohort((0, 1), 1, 1))[0]
    assert payload.label_counts.tolist() == [1, 0, 1]
    assert_close(payload.probe_logits[:, [0, 2]].exp().sum(1), torch.ones(12))
    assert findings["effective_senders"] <= 2


def test_nobody_holding_anything_means_no_distillation_and_is_said():
    chosen = strategy()
    after, findings = fused(chosen, [answer(0, [0, 0, 0])])
    assert findings == {"skipped": 1.0}
    assert chosen.plan(after, Cohort((0,), 1, 1))[0].kinds() == {"numbers"}


def test_a_lie_about_counts_weighs_no_more_than_the_cap():
    liar = [answer(0, [10**9, 0, 0]), answer(1, [5, 5, 5]), answer(2, [5, 5, 5])]
    logs = torch.stack([r.payload.probe_logits for r in liar]).log_softmax(2)
    after, _ = fused(strategy(trust_cap=0.5), liar)
    assert_close(
        teacher(after), fusion.trust_logit(logs, fusion.by_holders(torch.tensor([[2, 0, 0], [1, 1, 1], [1, 1, 1]])))
    )


def test_logits_as_large_as_they_come_forbid_nothing_and_stay_finite():
    huge = replace(ANSWERS[0].payload, probe_logits=torch.tensor([[3e38, -3e38, 0.0]]).expand(12, 3).contiguous())
    after, findings = fused(strategy(), [replace(ANSWERS[0], payload=huge), *ANSWERS[1:]])
    assert bool(after.knowledge.log_RNC.isfinite().all())
    assert all(value == value for value in findings.values() if isinstance(value, float))


def test_the_ledger_hears_what_the_knowledge_is_worth_where_the_public_set_is_labelled():
    _, findings = fused(strategy(), ANSWERS)
    assert {"effective_senders", "teacher_agreement", "teacher_accuracy", "filter_gain", "harmed"} <= set(findings)
    blind = replace(PROBLEM, proxy=replace(PUBLIC, is_labelled=False))
    assert "teacher_accuracy" not in fused(strategy(), ANSWERS, blind)[1]


# What is told, asked and refused


def test_clients_are_told_which_public_set_is_meant_or_nothing_where_images_are_generated():
    assert strategy().plan(begin(strategy()), Cohort((0,), 1))[0].numbers == {"checksum": 12345.0}
    chosen = strategy(transfer="generated")
    assert chosen.plan(begin(chosen), Cohort((0,), 1))[0].kinds() == frozenset()


def test_too_few_rows_are_refused():
    chosen = strategy()
    short = replace(ANSWERS[0].payload, probe_logits=torch.zeros(11, 3))
    with pytest.raises(checks.Refused, match="11 rows, expected 12"):
        chosen.inspect(begin(chosen), tiny.job(PROBLEM), replace(ANSWERS[0], payload=short))


def test_weights_that_nobody_asked_for_are_refused():
    chosen = strategy()
    more = replace(ANSWERS[0].payload, samples={"head.bias": torch.zeros(1, 3)})
    with pytest.raises(checks.Refused, match="none were asked for"):
        chosen.inspect(begin(chosen), tiny.job(PROBLEM), replace(ANSWERS[0], payload=more))


def test_a_proxy_that_is_not_there_is_an_error_and_auto_takes_what_there_is():
    with pytest.raises(ConfigError, match="needs a public set"):
        strategy(transfer="proxy").init(tiny.problem(), STREAM)
    assert not begin(strategy(), PROBLEM).generator
    assert begin(strategy(), tiny.problem()).generator
    assert begin(strategy(transfer="generated"), PROBLEM).generator


# Rounds


def play(chosen: FedFuse, problem=PROBLEM, count: int = 1, spoil=lambda job, result: result, **config: Any):
    site = tiny.site(client_half.FedFuse(client_half.FedFuse.Config(distil_batch=4, **config)), problem)
    site = replace(site, common=torch.arange(9))
    return tiny.play(tiny.experiment(chosen, site), tiny.FakeEngine(site, spoil), count)


def test_a_client_that_answers_nan_is_as_if_it_were_not_there():

    def lie(job, result):
        if job.task != "train" or job.client != 1 or job.exchange:
            return result
        return replace(result, payload=replace(result.payload, probe_logits=torch.full((12, 3), torch.nan)))

    def silence(job, result):
        if job.task == "train" and job.client == 1 and not job.exchange:
            return replace(lie(job, result), payload=Payload())
        return result

    told, silent = (play(strategy(), spoil=spoil)[0] for spoil in (lie, silence))
    assert told.state.standing.refusals == {1: 1}
    tiny.assert_same(tiny.canonical(replace(told.state, standing=silent.state.standing)), tiny.canonical(silent.state))
    assert told.row["clients"]["rejected"] == 1


def test_bytes_are_two_times_four_n_c_a_client_and_the_counts():
    (played,) = play(strategy())
    assert played.row["bytes"]["up"] == {"probe_logits": 3 * 12 * 3 * 4, "samples": 0, "label_counts": 3 * 3 * 8}
    down = played.row["bytes"]["down"]
    assert down == {"probe_logits": 3 * 12 * 3 * 4, "label_counts": 3 * 3 * 8, "numbers": 2 * 3 * 8}


def test_all_students_are_tried_on_common_images_too_and_none_is_global():
    chosen = strategy()
    assert chosen.evaluation_payload(begin(chosen), None) is None
    accuracy = play(chosen)[0].row["accuracy"]
    assert {"clients", "common"} <= set(accuracy)


# Without a public set

SHAPE = (1, tiny.SIDE, tiny.SIDE)
MAKE = {name: partial(students.make, name, SHAPE, 3) for name in ("knfu-cnn-bn", "mlp")}
BARE = tiny.problem(
    MAKE["knfu-cnn-bn"], mixture=MAKE, assigned=("knfu-cnn-bn", "mlp", "knfu-cnn-bn"), input_shape=SHAPE
)
SMALL = {"images": 12, "generator_steps": 3, "generator_batch": 4, "noise": 4, "least_variation": 0.0}


def test_images_are_generated_among_students_that_differ_and_everybody_learns():
    played = play(strategy(**SMALL), BARE, count=2)
    for row in (one.row for one in played):
        assert row["clients"] == {"ok": 3, "failed": 0, "late": 0, "rejected": 0}
        assert row["bytes"]["down"]["samples"] == 3 * 12 * tiny.SIDE**2
        assert {"recognised", "statistics", "diversity", "fidelity", "variation", "spread"} <= set(row["server"])
        assert row["server"]["collapsed"] == 0
        assert {"ce", "distil", "own"} == set(row["terms"])
    one, two = (play_.state.server for play_ in played)
    assert (one.adam["step"], two.adam["step"]) == (3, 6)


def test_a_collapsed_generator_means_no_distillation_and_is_said():
    (played,) = play(strategy(**{**SMALL, "least_variation": 1.1}), BARE)
    assert played.row["server"]["collapsed"] == 1
    assert set(played.row["terms"]) == {"ce"}
    assert played.row["bytes"]["down"] == {}


def test_what_the_server_asks_the_students_is_what_the_clients_would_have_answered():
    """So a trip with the images is saved."""
    site = tiny.site(client_half.FedFuse(), BARE)
    chosen = strategy(**SMALL)
    state = begin(chosen, BARE)
    payload = chosen.plan(state, Cohort((0, 1, 2), 1))[0]
    replies = [tiny.fit(site.client, tiny.job(BARE, client=k, payload=payload), site) for k in range(3)]
    after, _ = chosen.aggregate(state, replies, STREAM)
    x = after.knowledge.images["x"].float() * (2 / 255) - 1
    said = []
    for k, reply in enumerate(replies):
        student = BARE.initial(k).load(reply.state.kept).eval()
        said.append(student(x).detach())
    logs = torch.stack(said).log_softmax(2)
    trust = fusion.by_holders(torch.stack([reply.payload.label_counts for reply in replies]))
    assert_close(teacher(after), fusion.trust_logit(logs, trust))


def test_the_pool_keeps_the_last_rounds_and_mixes_them_in():
    chosen = strategy(**SMALL, pool=2)
    sizes = [len(one.state.server.pool["y"]) for one in play(chosen, BARE, count=4)]
    assert sizes == [12, 24, 24, 24]
    assert not play(strategy(**SMALL), BARE)[0].state.server.pool


def test_images_are_of_labels_that_somebody_holds():
    class OneLabel(client_half.FedFuse):
        def _release(self, site, job, counts_C):
            return counts_C * torch.tensor([1, 0, 1])

    site = tiny.site(OneLabel(OneLabel.Config(distil_batch=4)), BARE)
    (played,) = tiny.play(tiny.experiment(strategy(**SMALL), site), tiny.FakeEngine(site))
    assert played.row["server"]["fidelity_by_label"][1] == -1.0
    assert played.row["server"]["coverage"][1] == 0


def test_a_student_that_does_not_fit_is_refused():
    chosen = strategy(**SMALL)
    state = begin(chosen, BARE)
    reply = replace(
        tiny.reply(0),
        payload=Payload(probe_logits=torch.zeros(0, 3), samples={}, label_counts=torch.ones(3, dtype=torch.int64)),
    )
    with pytest.raises(checks.Refused, match="entries"):
        chosen.inspect(state, tiny.job(BARE), reply)
