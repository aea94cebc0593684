"""The guard: a reply that stands out by orders of magnitude is refused."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd.border import guard
from fedkd.config import BorderConfig, PrivacyConfig, RunConfig, TrainConfig
from fedkd.engine import Job
from fedkd.payload import Payload

CONFIG = RunConfig(train=TrainConfig(batch=10, steps=5))
CLASSES = 3
SENT = {"w": torch.tensor([5.0, -5.0])}


def judge(*values, kind="weights", config=CONFIG, sizes=None, sent=None, **more):
    """Replies whose only tensor holds `values`, a client each."""
    payloads = [tensor(kind, value) for value in values]
    job = Job(task="train", client=0, round=1, payload=Payload(**({"weights": SENT} if sent is None else sent)))
    jobs = {client: replace(job, client=client) for client in range(len(payloads))}
    replies = [tiny.reply(client, num_examples=7, **more) for client in jobs]
    replies = [replace(reply, payload=payload) for reply, payload in zip(replies, payloads, strict=True)]
    return guard.screen(config, CLASSES, sizes, jobs, replies)


def tensor(kind, value):
    if kind == "weights":
        return Payload(weights={"w": SENT["w"] + torch.tensor([0.0, value])})
    return Payload(**{kind: torch.full((CLASSES, CLASSES), value)})


def refused(judged):
    assert {failure.cause for failure in judged.failures} <= {"range"}
    return [failure.client for failure in judged.failures]


def test_an_update_over_a_thousand_times_the_median_of_the_others_is_refused_by_name_and_figure():
    judged = judge(0.5, 0.2, -1e6, 0.3)
    assert refused(judged) == [2]
    assert [reply.client for reply in judged.replies] == [0, 1, 3]
    (failure,) = judged.failures
    assert failure.what.startswith("weights: 'w' changes by up to 1e+06, the others' 0.3 (median)")
    assert judged.ratios[2] == pytest.approx(1e6 / 0.3, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "own", "expected"),
    [([1, 2, 3, 4], 4, 2), ([1, 2, 3, 4], 1, 3), ([1, 2, 3], 2, 1), ([1, 2, 3], 1, 2), ([1, 2], 1, 2), ([1, 2], 2, 1)],
)
def test_the_median_of_the_others_is_that_of_all_values_but_ones_own(values, own, expected):
    """Of two in the middle the lower one."""
    assert guard.without(values, own) == expected


def test_what_counts_of_weights_is_the_change_not_the_value():
    assert refused(judge(200.0, 0.1, 0.1, config=replace(CONFIG, border=BorderConfig(limit=100)))) == [0]
    assert refused(judge(5.0, 0.1, 0.1, config=replace(CONFIG, border=BorderConfig(limit=100)))) == []


def test_a_running_variance_may_grow_by_the_square_of_the_limit():
    sent = {"norm.running_var": torch.ones(2), "w": torch.ones(2)}
    job = Job(task="train", client=0, round=1, payload=Payload(weights=sent))

    def judged(entry, change):
        grown = [{**sent, entry: sent[entry] + each} for each in (change, 1.0, 1.0)]
        replies = [tiny.reply(c, num_examples=7, payload=Payload(weights=weights)) for c, weights in enumerate(grown)]
        return guard.screen(CONFIG, CLASSES, None, {c: replace(job, client=c) for c in range(3)}, replies)

    assert refused(judged("norm.running_var", 1e5)) == []
    assert refused(judged("norm.running_var", 1e7)) == [0]
    assert refused(judged("w", 1e5)) == [0]


def test_of_two_replies_the_larger_one_is_refused():
    assert refused(judge(1e6, 0.1)) == [0]
    assert refused(judge(0.1, 1e6, kind="prototypes")) == [1]


def test_a_lone_reply_is_held_against_what_it_was_sent():
    assert refused(judge(1e6)) == [0]
    assert refused(judge(9e4)) == []
    assert refused(judge(9e6, sent={"weights": {"w": torch.tensor([1e4, 0.0])}})) == []


def test_a_lone_reply_that_was_sent_nothing_alike_has_the_limit_of_a_hundred_thousand():
    assert refused(judge(1e6, kind="class_logits")) == [0]
    assert refused(judge(9e4, kind="class_logits")) == []


def test_two_liars_among_five_are_both_refused():
    assert refused(judge(1e6, 0.1, 1e9, 0.2, 0.3)) == [0, 2]


def test_replies_that_hardly_move_make_no_other_look_large():
    assert refused(judge(50.0, 0.0, 0.0, 0.0)) == []
    assert refused(judge(1e3, 0.0, 0.0, 0.0)) == [0]


def test_the_limit_is_the_configurations_and_zero_switches_it_off():
    off, tight = (replace(CONFIG, border=BorderConfig(limit=limit)) for limit in (0, 10))
    assert refused(judge(1e30, 0.1, 0.1, config=off)) == []
    assert refused(judge(5.0, 0.1, 0.1, config=tight)) == [0]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9), st.floats(1e-6, 1e6))
def test_replies_within_the_same_order_of_magnitude_are_never_refused(values, scale):
    honest = [scale * (0.01 + abs(value)) for value in values]
    limit = replace(CONFIG, border=BorderConfig(limit=1000))
    assert refused(judge(*honest, kind="class_logits", config=limit)) == [] or (len(honest) == 1 and honest[0] > 1e5)


def test_an_overflowing_change_is_refused():
    sent = {"weights": {"w": torch.full((2,), -3e38)}}
    job = Job(task="train", client=0, round=1, payload=Payload(**sent))
    jobs = {client: replace(job, client=client) for client in range(3)}
    honest = [tiny.reply(client, sent["weights"]) for client in (1, 2)]
    replies = [tiny.reply(0, {"w": torch.full((2,), 3e38)}), *honest]
    assert refused(guard.screen(CONFIG, CLASSES, None, jobs, replies)) == [0]


def test_numbers_are_compared_by_name_and_a_lone_one_is_not():
    checksum = {"checksum": 2.0**52, "depth": 2}
    jobs = {client: Job(task="train", client=client, round=1, payload=Payload()) for client in range(3)}
    replies = [tiny.reply(client) for client in range(3)]
    honest = [replace(reply, payload=Payload(numbers=checksum)) for reply in replies]
    assert refused(guard.screen(CONFIG, CLASSES, None, jobs, honest)) == []
    assert refused(guard.screen(CONFIG, CLASSES, None, jobs, honest[:1])) == []
    liar = replace(honest[0], payload=Payload(numbers={**checksum, "depth": 1e9}))
    assert refused(guard.screen(CONFIG, CLASSES, None, jobs, [liar, *honest[1:]])) == [0]


# Counts


def counted(num_examples, labels=None, config=CONFIG, sizes=None, others=(7, 7)):
    payload = Payload() if labels is None else Payload(label_counts=torch.tensor(labels))
    fellows = Payload() if labels is None else Payload(label_counts=torch.tensor([3, 2, 2]))
    told = [(num_examples, payload), *((count, fellows) for count in others)]
    replies = [replace(tiny.reply(client, num_examples=n), payload=p) for client, (n, p) in enumerate(told)]
    jobs = {reply.client: Job(task="train", client=reply.client, round=1, payload=Payload()) for reply in replies}
    return guard.screen(config, CLASSES, sizes, jobs, replies)


def test_in_a_simulation_nobody_has_more_examples_than_the_partition_gave():
    assert refused(counted(7, sizes=(7, 7, 7))) == []
    judged = counted(8, sizes=(7, 7, 7))
    assert refused(judged) == [0]
    assert judged.failures[0].what == "num_examples = 8, at most 7 by the partition"


def test_sizes_told_in_steps_are_held_against_sizes_in_steps():
    assert refused(counted(10, config=replace(CONFIG, privacy=PrivacyConfig(size_step=10)), sizes=(7, 7, 7))) == []


def test_label_counts_may_be_ten_times_what_is_drawn_and_no_more():
    """50 are drawn in 5 steps of 10, on 3 classes: 10 times 53."""
    assert refused(counted(7, [530, 0, 0], sizes=(7, 7, 7))) == []
    assert refused(counted(7, [531, 0, 0], sizes=(7, 7, 7))) == [0]


def test_noise_that_all_add_to_their_label_counts_refuses_nobody():
    noisy, liar = torch.tensor([90, 80, 70]), torch.tensor([10**9, 0, 0])
    payloads = [Payload(label_counts=noisy)] * 3 + [Payload(label_counts=liar)]
    replies = [tiny.reply(client, num_examples=2, payload=payload) for client, payload in enumerate(payloads)]
    jobs = {client: Job(task="train", client=client, round=1, payload=Payload()) for client in range(4)}
    config = replace(CONFIG, train=TrainConfig(batch=2, steps=1))
    assert refused(guard.screen(config, CLASSES, [2, 2, 2, 2], jobs, replies)) == [3]


def test_label_counts_under_whole_epochs_follow_the_size():
    config = replace(CONFIG, train=TrainConfig(steps=None, epochs=4))
    assert refused(counted(7, [310, 0, 0], config=config, sizes=(7, 7, 7))) == []  # 10 times (4 * 7 + 3)
    assert refused(counted(7, [311, 0, 0], config=config, sizes=(7, 7, 7))) == [0]


def test_a_run_may_declare_how_many_examples_a_client_can_have():
    declared = replace(CONFIG, border=BorderConfig(max_examples=100))
    assert refused(counted(101, config=declared)) == [0]
    assert refused(counted(100, config=declared)) == []
    assert refused(counted(7, [10**9] * 3, config=declared)) == [0]


def test_where_nobody_knows_sizes_counts_are_held_against_the_others():
    assert refused(counted(60_000, others=(10, 20))) == []
    judged = counted(10**9, others=(10, 20))
    assert refused(judged) == [0]
    assert "border.max_examples" in judged.failures[0].what
    assert refused(counted(7, [10**9] * 3)) == [0]
    assert refused(counted(10**9, others=())) == []  # nobody to hold it against, and nobody it could outweigh


def test_a_size_that_is_told_in_steps_may_be_rounded_up_beyond_a_declared_cap():
    """As `privacy.size_step` does: a client of 5 samples, of at most 6, says that it has 7."""
    declared = replace(CONFIG, border=BorderConfig(max_examples=6))
    assert refused(judge(0.1, 0.1, config=declared)) == [0, 1]
    in_steps = replace(declared, privacy=PrivacyConfig(size_step=7))
    assert not judge(0.1, 0.1, config=in_steps, sizes=[5, 5]).failures
    assert refused(judge(0.1, 0.1, config=replace(in_steps, privacy=PrivacyConfig(size_step=6)))) == [0, 1]
