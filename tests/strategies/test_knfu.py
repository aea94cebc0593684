import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import tiny
import torch
from hypothesis import given
from pydantic import ValidationError
from torch.testing import assert_close

from clients.knfu import KnFu as Client
from fedkd import seeds
from fedkd.border.checks import Refused
from fedkd.configuration import compose
from fedkd.data.samples import Proxy
from fedkd.engine import Failure
from fedkd.errors import ConfigError
from fedkd.maths import losses
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from strategies.knfu import KnFu

B = torch.tensor([[[2, 1, 0], [0, 1, 0]], [[1, 2, 0], [0, 2, 0]], [[0, 0, 3], [-1, 0, 1]]]).float()
STREAM = seeds.stream(0, "aggregate")


def public(size=2, is_labelled=True):
    return Proxy("held-out", tiny.samples(size, seed=3), is_labelled, 77)


def strategy(**config):
    return KnFu(KnFu.Config(**config))


def replies(logits, sizes=None, counts=None, clients=None, round=1):
    clients = range(len(logits)) if clients is None else clients
    sizes = sizes or [1] * len(logits)
    return [
        tiny.reply(
            client,
            round=round,
            num_examples=sizes[i],
            payload=Payload(probe_logits=logits[i], label_counts=None if counts is None else counts[i]),
        )
        for i, client in enumerate(clients)
    ]


def fuse(logits, state=None, sizes=None, counts=None, clients=None, round=1, is_labelled=True, **config):
    """State and findings after exchange 0."""
    server = strategy(**config)
    problem = tiny.problem(proxy=public(logits.shape[1], is_labelled), clients=len(logits))
    state = server.init(problem, STREAM) if state is None else state
    return server.aggregate(state, replies(logits, sizes, counts, clients, round), STREAM)


def fused(logits, **config):
    """F (K, N, C) of those who have a teacher."""
    teachers = fuse(logits, **config)[0].teachers
    return torch.stack([teachers[client] for client in sorted(teachers)]).exp()


def weights(logits, **config):
    return torch.tensor(fuse(logits, **config)[1]["weights"])


def draw(seed, clients=4, samples=5):
    return 2 * torch.randn(clients, samples, tiny.CLASSES, generator=seeds.stream(seed, "z").torch())


any_logits = st.builds(draw, st.integers(0, 300), st.integers(2, 6), st.integers(1, 6))
any_config = st.fixed_dictionaries(
    {
        "epd": st.sampled_from(["mean_soft", "argmax_hist", "class_table"]),
        "divergence": st.sampled_from(["kl", "kl_rev", "js", "l1", "l2", "cos"]),
        "beta": st.sampled_from([0.0, 1.0, 10.0, "inf", "auto"]),
        "include_self": st.booleans(),
        "size_prior": st.booleans(),
        "top_m": st.sampled_from([None, 1, 2]),
        "weight_level": st.sampled_from(["client", "sample"]),
        "fuse": st.sampled_from(["prob", "logit"]),
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
    }
)


# Golden, worked out apart from this code


def near(actual, expected):
    assert_close(actual, torch.tensor(expected), rtol=0, atol=2e-6)


def test_teachers_of_the_spec():
    F = fused(B)
    near(F[0], [[0.627628, 0.282307, 0.090065], [0.202512, 0.594951, 0.202537]])
    near(F[1], [[0.290066, 0.619895, 0.090039], [0.117875, 0.764244, 0.117881]])
    near(F[2], [[0.045301, 0.045287, 0.909412], [0.090035, 0.244741, 0.665224]])


def test_weights_and_effective_senders_of_the_spec():
    _, found = fuse(B)
    assert found["weights"] == [[0.9106, 0.0894, 0.0], [0.1078, 0.8922, 0.0], [0.0, 0.0, 1.0]]
    assert found["effective_senders"] == pytest.approx((1.351984 + 1.407850 + 1.000427) / 3, abs=1e-6)
    assert (found["effective_senders_least"], found["effective_senders_most"]) == pytest.approx((1.000427, 1.407850))


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, (0.00228053, 0.00352419, 3.797e-9)), (2.0, (0.00214452, 0.00312716, 2.157e-9))],
)
def test_losses_of_the_spec(temperature, expected):
    F = fused(B, temperature=temperature).double()
    F = F / F.sum(-1, keepdim=True)
    found = [temperature**2 * float(losses.kl(F[k], B[k].double() / temperature)) for k in range(3)]
    assert found == pytest.approx(expected, rel=1e-3, abs=2e-9)


def test_the_mean_of_logits_of_the_spec():
    expected = [[0.629752, 0.277032, 0.093216], [0.201105, 0.597773, 0.201122]]
    assert_close(fused(B, fuse="logit")[0], torch.tensor(expected), rtol=0, atol=2e-6)


def test_js_of_the_spec():
    assert_close(weights(B, divergence="js")[0], torch.tensor([0.5934, 0.3454, 0.0612]))


# Invariants


@given(any_logits, any_config)
def test_teachers_are_probabilities_between_what_the_senders_say(logits, config):
    F = fused(logits, **config)
    assert_close(F.sum(-1), torch.ones(F.shape[:2]), rtol=0, atol=1e-5)
    if config["fuse"] == "prob":
        S = (logits / config["temperature"]).softmax(-1)
        assert float((F - S.amin(0)).min()) >= -1e-6
        assert float((F - S.amax(0)).max()) <= 1e-6


@given(any_logits, any_config)
def test_weights_are_not_negative_and_sum_to_one(logits, config):
    W = weights(logits, **config)
    assert bool((W >= 0).all())
    assert_close(W.sum(1), torch.ones(len(W)), rtol=0, atol=1e-3)


@given(any_logits)
def test_beta_zero_is_the_plain_average_of_predictions(logits):
    F = fused(logits, beta=0)
    expected = logits.double().softmax(-1).mean(0)
    assert_close(F, expected.float().expand_as(F), rtol=1e-6, atol=1e-7)
    assert len(set(map(id, fuse(logits, beta=0)[0].teachers.values()))) == 1


def test_beta_infinite_teaches_each_client_its_own_knowledge():
    logits = draw(1)
    assert_close(fused(logits, beta="inf"), logits.softmax(-1))
    assert fuse(logits, beta="inf")[1]["is_local"] == 1
    W = weights(logits, beta="inf", include_self=False)
    assert sorted(W.flatten().tolist()) == [0.0] * 12 + [1.0] * 4
    assert not W.diagonal().any()


@given(any_logits, st.integers(0, 99), any_config)
def test_reordering_clients_moves_their_teachers_with_them(logits, seed, config):
    if config["top_m"] is not None:
        config = config | {"divergence": "kl", "epd": "mean_soft"}  # ties go to the lower client
    order = torch.randperm(len(logits), generator=seeds.stream(seed, "order").torch())
    assert_close(fused(logits[order], **config), fused(logits, **config)[order], rtol=1e-3, atol=1e-5)


@given(any_logits, st.integers(0, 99))
def test_reordering_classes_or_samples_does_so_in_the_teachers(logits, seed):
    generator = seeds.stream(seed, "order").torch()
    classes = torch.randperm(logits.shape[2], generator=generator)
    samples = torch.randperm(logits.shape[1], generator=generator)
    assert_close(fused(logits[..., classes]), fused(logits)[..., classes], rtol=1e-4, atol=1e-6)
    assert_close(fused(logits[:, samples]), fused(logits)[:, samples], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [{}, {"divergence": "js"}, {"beta": "inf"}, {"beta": 0}, {"fuse": "logit"}])
def test_identical_clients_are_taught_what_they_know(config):
    logits = draw(2, clients=1).expand(4, -1, -1).contiguous()
    assert_close(fused(logits, **config), logits.softmax(-1))
    assert_close(weights(logits, **config), torch.full((4, 4), 0.25))


def test_a_constant_added_to_the_logits_of_a_sample_changes_nothing():
    logits, shift = draw(3), torch.randn(4, 5, 1, generator=seeds.stream(3, "shift").torch())
    assert_close(fused(logits + shift), fused(logits), rtol=1e-4, atol=1e-6)


def test_by_sample_only_those_who_agree_are_heard():
    logits = torch.tensor([[[9.0, 0, 0], [0, 9, 0]], [[9, 0, 0], [0, 0, 9]], [[0, 9, 0], [0, 9, 0]]])
    F = fused(logits, weight_level="sample")
    assert_close(F, logits.softmax(-1), rtol=1e-3, atol=1e-6)
    _, found = fuse(logits, weight_level="sample")
    assert_close(torch.tensor(found["weights"][0]), torch.tensor([0.5, 0.25, 0.25]), rtol=0, atol=1e-3)


# Options


def test_beta_auto_is_chosen_in_the_first_round_and_kept():
    logits = draw(4, clients=8)
    state, found = fuse(logits, beta="auto", beta_senders=3)
    assert found["effective_senders"] == pytest.approx(3, abs=1e-6)
    assert found["beta"] == state.beta
    after, found = fuse(2 * logits, state, beta="auto", round=2)
    assert after.beta == state.beta
    assert found["effective_senders"] < 3


def test_the_first_law_may_be_kept():
    first, later = draw(5), draw(6)
    state, found = fuse(first, epd_when="first")
    frozen, again = fuse(later, state, epd_when="first", round=2)
    assert again["weights"] == found["weights"]
    assert fuse(later)[1]["weights"] != found["weights"]
    expected = (weights(first)[0, :, None, None] * later.softmax(-1)).sum(0)
    assert_close(frozen.teachers[0].exp(), expected, atol=1e-3, rtol=0)


def test_who_comes_later_is_judged_by_its_own_first_law():
    state, _ = fuse(draw(5)[:2], epd_when="first")
    after, _ = fuse(draw(6)[:3], state, epd_when="first", round=2)
    assert sorted(after.laws) == [0, 1, 2]
    assert_close(after.laws[2], draw(6)[2].double().softmax(-1).mean(0))


def test_reported_counts_decide_where_they_are_asked_for():
    counts = torch.tensor([[10, 0, 0], [10, 0, 0], [0, 5, 5], [0, 10, 0]])
    W = weights(draw(7), counts=counts, epd="reported")
    assert_close(W[0], torch.tensor([0.5, 0.5, 0, 0]))
    assert strategy(epd="reported").expected_kinds(Cohort((0,), 1)) == {"probe_logits", "label_counts"}
    assert strategy(epd="reported").expected_kinds(Cohort((0,), 1, 1)) == frozenset()
    assert strategy().expected_kinds(Cohort((0,), 1)) == {"probe_logits"}


def test_a_pseudo_count_brings_disjoint_clients_nearer():
    counts = torch.tensor([[10, 0, 0], [0, 10, 0]])
    far = fuse(draw(7, clients=2), counts=counts, epd="reported")[1]
    near = fuse(draw(7, clients=2), counts=counts, epd="reported", pseudo_count=1, beta=0.5)[1]
    assert (far["is_local"], near["is_local"]) == (1, 0)


def test_clients_may_be_compared_by_what_they_say_of_each_public_label():
    confused, sure = torch.zeros(3, 3), 9 * torch.eye(3)
    W = weights(torch.stack([sure, sure[[1, 0, 2]], sure, confused]), epd="class_table")
    assert_close(W[0], torch.tensor([0.5, 0, 0.5, 0]))


def test_small_clients_receive_and_are_nobodys_source():
    state, found = fuse(draw(8), sizes=[3, 30, 30, 30], min_samples=10)
    W = torch.tensor(found["weights"])
    assert not W[:, 0].any()
    assert W[0].sum() == pytest.approx(1, abs=1e-3)
    assert 0 in state.teachers


def test_large_clients_may_count_for_more():
    alike = draw(9, clients=1).expand(2, -1, -1).contiguous()
    assert_close(weights(alike, sizes=[30, 10], size_prior=True), torch.tensor([[0.75, 0.25]] * 2))


def test_absent_clients_are_heard_as_long_as_they_may_be():
    logits = draw(10)
    for stale, columns in ((0, 2), (1, 4)):
        state, _ = fuse(logits, stale=stale)
        assert len(fuse(logits[1:3], state, stale=stale, clients=[1, 3], round=2)[1]["weights"][0]) == columns
    old = replace(fuse(logits, stale=1)[0], teachers={})
    after, found = fuse(logits[1:3], old, stale=1, clients=[1, 3], round=3)
    assert len(found["weights"][0]) == 2
    assert sorted(after.teachers) == sorted(after.heard) == [1, 3]


def test_a_row_of_weights_belongs_to_a_client_of_the_cohort():
    state, _ = fuse(draw(11), stale=5, beta="inf")
    _, found = fuse(draw(11)[[3]], state, stale=5, clients=[3], round=2, beta="inf")
    assert found["weights"] == [[0.0, 0.0, 0.0, 1.0]]


# Edge cases


def test_one_client_is_its_own_teacher_or_has_none():
    logits = draw(12, clients=1)
    assert_close(fused(logits), logits.softmax(-1))
    state, found = fuse(logits, include_self=False)
    assert state.teachers == {}
    assert (found["weights"], found["effective_senders"]) == ([[0.0]], 0.0)
    assert strategy().plan(state, Cohort((0,), 1, 1))[0].kinds() == {"numbers"}


def test_clients_without_a_label_in_common_are_local_and_the_ledger_says_so():
    logits = 1000 * torch.eye(3)[:, None].expand(-1, 4, -1).contiguous()
    _, found = fuse(logits)
    assert (found["is_local"], found["is_untested"]) == (1.0, 1.0)
    assert fuse(draw(13), beta=2.0)[1]["is_untested"] == 0.0
    assert fuse(draw(13), beta=0)[1]["is_untested"] == 1.0


def test_extreme_logits_give_finite_teachers():
    logits = torch.tensor([[[1e30, -1e30, 0]], [[-1e30, 1e30, 0]]])
    for config in ({}, {"beta": 0}, {"fuse": "logit"}):
        state, _ = fuse(logits, **config)
        assert all(bool(teacher.isfinite().all()) for teacher in state.teachers.values())


def spoilt(share):
    """Server state after a round in which client 1's logits are spoilt, or it does not reply."""
    problem = tiny.problem(proxy=public(6))
    site = tiny.site(Client(), problem)

    def spoil(job, result):
        if (job.client, job.exchange, job.task) != (1, 0, "train"):
            return result
        if share is None:
            return Failure(client=1, round=1, what="silent", cause="lost")
        return replace(result, payload=Payload(probe_logits=result.payload.probe_logits.fill_(share)))

    return tiny.play(tiny.experiment(strategy(), site), tiny.FakeEngine(site, spoil=spoil))[0]


def test_a_sender_of_nan_is_as_one_who_is_not_there():
    silent, nan = spoilt(None), spoilt(math.nan)
    assert nan.row["server"] == silent.row["server"]
    assert nan.state.standing.refusals == {1: 1}
    tiny.assert_same(tiny.canonical(replace(nan.state, standing=silent.state.standing)), tiny.canonical(silent.state))
    assert [row["cause"] for row in nan.clients if row["state"] == "rejected"] == ["non_finite"]
    assert len(nan.row["server"]["weights"]) == 2


def test_as_many_rows_as_public_images_are_asked_for():
    server = strategy()
    state = server.init(tiny.problem(proxy=public(5)), STREAM)
    job = tiny.job(state.problem)
    server.inspect(state, job, replies(draw(0))[0])
    with pytest.raises(Refused, match="4 rows, expected 5"):
        server.inspect(state, job, replies(draw(0, samples=4))[0])


def test_it_needs_labels_of_the_public_set_where_it_uses_them():
    for config in ({"fine_tune_ce": "transfer"}, {"epd": "class_table"}):
        begin(public(), **config)
        with pytest.raises(ConfigError, match="needs labels"):
            begin(public(is_labelled=False), **config)


def begin(proxy, **config):
    server = strategy(**config)
    state = server.init(tiny.problem(proxy=proxy), STREAM)
    return server.plan(state, Cohort((0,), 1))


OUT_OF_RANGE = ["beta=-1", "beta=much", "temperature=0", "top_m=0", "pseudo_count=2", "beta_senders=0", "stale=-1"]


@pytest.mark.parametrize("word", OUT_OF_RANGE)
def test_values_out_of_range_are_refused(word):
    with pytest.raises((ConfigError, ValidationError), match=word.partition("=")[0]):
        compose.resolve(["data=digits", "strategy=knfu", "proxy=held-out", f"strategy.{word}"])


def test_beta_may_be_a_word():
    for word in ("inf", "auto"):
        config = compose.resolve(["data=digits", "strategy=knfu", "proxy=held-out", f"strategy.beta={word}"]).config
        assert config.strategy["beta"] == word


# What crosses


def test_each_gets_its_own_teacher_of_four_bytes_a_value_and_weights_never_cross():
    problem = tiny.problem(proxy=public(6))
    site = tiny.site(Client(), problem)
    engine = tiny.FakeEngine(site)
    played = tiny.play(tiny.experiment(strategy(), site), engine, 2)
    for row in (p.row for p in played):
        assert row["bytes"]["up"] == {"probe_logits": 3 * 4 * 6 * tiny.CLASSES}
        assert row["bytes"]["down"]["probe_logits"] == 3 * 4 * 6 * tiny.CLASSES
    trained = [job for job in engine.jobs if job.task == "train"]
    assert {kind for job in trained for kind in job.payload.kinds()} == {"probe_logits", "numbers"}
    assert len({id(job.payload) for job in trained if job.exchange == 1 and job.round == 1}) == 3


def test_teachers_are_forgotten_when_they_have_taught_unless_the_next_round_needs_them():
    site = tiny.site(Client(), tiny.problem(proxy=public(6)))
    assert tiny.play(tiny.experiment(strategy(), site), tiny.FakeEngine(site))[0].state.server.teachers == {}
    first = tiny.experiment(strategy(order="distill_first"), site)
    engine = tiny.FakeEngine(site)
    played = tiny.play(first, engine, 2)
    assert sorted(played[0].state.server.teachers) == [0, 1, 2]
    jobs = [job for job in engine.jobs if job.task == "train"]
    assert [job.payload.probe_logits is not None for job in jobs] == [False] * 3 + [True] * 3
    assert {job.exchange for job in jobs} == {0}


def test_a_teacher_waits_for_a_client_that_is_absent():
    state, _ = fuse(draw(10), order="distill_first")
    after, _ = fuse(draw(11)[:1], state, order="distill_first", clients=[2], round=2)
    assert sorted(after.teachers) == [0, 1, 2, 3]
    assert after.teachers[0] is state.teachers[0]
    assert_close(after.teachers[2].exp(), draw(11)[0].softmax(-1))


def test_the_ledger_compares_teachers_with_labels_only_where_there_are_any():
    assert "filter_gain" in fuse(draw(14))[1]
    assert "filter_gain" not in fuse(draw(14), is_labelled=False)[1]
    assert "teacher_agreement" in fuse(draw(14), is_labelled=False)[1]


def test_public_labels_change_no_teacher():
    tiny.assert_same(
        tiny.canonical(fuse(draw(15))[0].teachers), tiny.canonical(fuse(draw(15), is_labelled=False)[0].teachers)
    )
