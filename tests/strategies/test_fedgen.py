"""FedGen's server half: invariants (docs/strategies/fedgen.md, equations 2 to 5)."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import seeds
from fedkd.engine import Reply
from fedkd.maths import fusion, losses
from fedkd.models import generators
from fedkd.payload import Payload
from fedkd.strategy import Cohort
from fedkd.training.optimisers import Adaptive
from strategies import fedgen
from strategies.fedgen import FedGen

CLASSES, LATENT = 4, 6
STREAM = seeds.stream(0, "test")


def head(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    draw = seeds.stream(seed, "head").torch()
    return {
        "head.weight": scale * torch.randn(CLASSES, LATENT, generator=draw),
        "head.bias": torch.randn(CLASSES, generator=draw),
    }


def reply(client: int, counts: list[int], weights: dict[str, torch.Tensor], size: int = 10) -> Reply:
    payload = Payload(weights=weights, label_counts=torch.tensor(counts))
    return Reply(client=client, round=1, payload=payload, num_examples=size)


def heads_of(replies: list[Reply]) -> fedgen.Heads:
    return fedgen.stack_heads(replies, fedgen.stack_counts(replies))


def state(weights: dict[str, torch.Tensor], seen: list[int] | None = None) -> fedgen.State:
    generator = generators.init(STREAM, noise=5, hidden=16, latent=LATENT, classes=CLASSES)
    memory = {"step": 0, "mean": {}, "square": {}}
    return fedgen.State(weights, generator, memory, torch.tensor(seen or [0] * CLASSES), 0)


def strategy(**changes: object) -> FedGen:
    return FedGen(FedGen.Config(**{"noise": 5, "hidden": 16, **changes}))


counts_of = st.lists(st.lists(st.integers(1, 1000), min_size=CLASSES, max_size=CLASSES), min_size=1, max_size=5)


# W, equation 2
@given(counts_of)
def test_trust_of_each_label_sums_to_one_and_is_positive(rows):
    trust = fusion.by_label_counts(torch.tensor(rows))[0]
    assert (trust > 0).all()
    torch.testing.assert_close(trust.sum(0), torch.ones(CLASSES))


@pytest.mark.parametrize("rows", [[[3, 1, 9, 2]], [[5, 2, 8, 1]] * 3])
def test_per_label_and_per_client_losses_coincide_for_one_client_and_for_equal_counters(rows):
    trust = fusion.by_label_counts(torch.tensor(rows))[0]
    draw = STREAM.torch()
    logits, y = torch.randn(len(rows), 8, CLASSES, generator=draw), torch.randint(CLASSES, (8,), generator=draw)
    torch.testing.assert_close(
        losses.ensemble_cross_entropy(logits, y, trust), losses.ensemble_cross_entropy_per_client(logits, y, trust)
    )


# labels generated
@given(counts_of, st.sampled_from(["uniform", "proportional"]))
def test_generated_labels_are_those_that_someone_drew(rows, law):
    counts = torch.tensor(rows)
    drawn = (counts > 1).any(0)
    law_C = fedgen.label_distribution(counts, law)
    assert law_C.sum() == pytest.approx(1)
    if drawn.any():
        assert ((law_C > 0) == drawn).all()


def test_generator_never_sees_a_label_nobody_drew(monkeypatch):
    met = set()
    generate = generators.generate
    monkeypatch.setattr(
        generators, "generate", lambda w, y, n, **k: (met.update(y.tolist()), generate(w, y, n, **k))[1]
    )
    replies = [reply(0, [9, 1, 1, 1], head(0)), reply(1, [1, 1, 7, 1], head(1))]
    strategy(generator_steps=5).aggregate(state(head(0)), replies, STREAM)
    assert met == {0, 2}


# the broadcasting slip, equation 3
def test_a_head_that_never_saw_a_label_does_not_teach_it_but_does_in_the_codes_slip():
    owner = {"head.weight": torch.zeros(CLASSES, LATENT), "head.bias": torch.tensor([2.0, 0, 0, 0])}
    other = {"head.weight": torch.zeros(CLASSES, LATENT), "head.bias": torch.tensor([0.0, 2, 0, 0])}
    bad = {"head.weight": torch.zeros(CLASSES, LATENT), "head.bias": torch.tensor([-60.0, 2, 0, 0])}
    z, big = torch.zeros(6, LATENT), 10**6
    mine, both = torch.tensor([0] * 6), torch.tensor([0, 0, 0, 1, 1, 1])  # two labels: per-client weights of a half

    def loss(form: str, second: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
        heads = heads_of([reply(0, [big, 1, 1, 1], owner), reply(1, [1, big, 1, 1], second)])
        return float(fedgen.teacher_loss(form, heads.logits(z), labels, heads.trust_KC))

    assert loss("per_label", bad, mine) == pytest.approx(loss("per_label", other, mine), abs=1e-3)
    assert loss("per_client", bad, both) > loss("per_client", other, both) + 5
    of_the_owner = -math.log(math.exp(2) / (math.exp(2) + 3))
    assert loss("per_label", other, both) == pytest.approx(of_the_owner, rel=1e-4)


def test_mean_logits_is_the_cross_entropy_of_the_ensemble():
    heads = heads_of([reply(0, [5, 2, 3, 4], head(0)), reply(1, [2, 2, 2, 2], head(1))])
    z, y = torch.randn(7, LATENT, generator=STREAM.torch()), torch.arange(7) % CLASSES
    expected = torch.nn.functional.cross_entropy(
        (z @ (head(0)["head.weight"] + head(1)["head.weight"]).T + head(0)["head.bias"] + head(1)["head.bias"]) / 2, y
    )
    torch.testing.assert_close(fedgen.teacher_loss("mean_logits", heads.logits(z), y, heads.trust_KC), expected)


def test_stacked_heads_give_each_heads_logits():
    replies = [reply(k, [2, 2, 2, 2], head(k)) for k in range(3)]
    z = torch.randn(7, LATENT, generator=STREAM.torch())
    for k, logits in enumerate(heads_of(replies).logits(z)):
        torch.testing.assert_close(logits, torch.nn.functional.linear(z, head(k)["head.weight"], head(k)["head.bias"]))


# diversity, equation 4
def test_diversity_equals_the_explicit_double_sum():
    draw = STREAM.torch()
    noise, z = torch.rand(8, 5, generator=draw), torch.randn(8, LATENT, generator=draw)
    total = sum(((noise[i] - noise[j]) ** 2).mean() * (z[i] - z[j]).abs().mean() for i in range(8) for j in range(8))
    assert float(losses.diversity(noise, z)) == pytest.approx(math.exp(-float(total) / 64), abs=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(1.1, 5), st.floats(-3, 3))
def test_diversity_is_in_its_range_falls_with_scale_and_ignores_order_and_translation(seed, scale, shift):
    draw = seeds.stream(seed, "div").torch()
    noise, z = torch.rand(8, 5, generator=draw), torch.randn(8, LATENT, generator=draw)
    value = float(losses.diversity(noise, z))
    order = torch.randperm(8, generator=draw)
    assert 0 < value < 1
    assert float(losses.diversity(noise, scale * z)) < value
    assert float(losses.diversity(noise[order], z[order])) == pytest.approx(value, rel=1e-5)
    assert float(losses.diversity(noise, z + shift)) == pytest.approx(value, rel=1e-4)


def test_diversity_is_one_for_equal_latents_and_for_equal_noise():
    draw = STREAM.torch()
    noise, z = torch.rand(8, 5, generator=draw), torch.randn(8, LATENT, generator=draw)
    assert float(losses.diversity(noise, z[:1].expand(8, -1))) == 1
    assert float(losses.diversity(noise[:1].expand(8, -1), z)) == 1


# who is changed by the server
def test_server_steps_change_the_generator_only():
    replies = [reply(k, [3, 4, 5, 6], head(k)) for k in range(2)]
    before = [{n: t.clone() for n, t in head(k).items()} for k in range(2)]
    old = state(head(0))
    generator = {n: t.clone() for n, t in old.generator.items()}
    after, _ = strategy(generator_steps=3).aggregate(old, replies, STREAM)
    for k, r in enumerate(replies):
        assert all(torch.equal(r.payload.weights[n], before[k][n]) for n in before[k])
    assert all(torch.equal(old.generator[n], generator[n]) for n in generator), "the old state must not change"
    assert not torch.equal(after.generator["hidden.weight"], generator["hidden.weight"])
    assert not any(t.requires_grad for t in after.generator.values())


# schedules
def test_generator_rate_entering_round_199(monkeypatch):
    rates = []
    step = Adaptive.step
    monkeypatch.setattr(Adaptive, "step", lambda self, g, lr, wd=0.0: (rates.append(lr), step(self, g, lr, wd))[1])
    late = replace(state(head(0)), round=199)
    strategy(generator_steps=1).aggregate(late, [reply(0, [3, 3, 3, 3], head(0))], STREAM)
    assert rates == [pytest.approx(5.384e-6, rel=1e-3)]


# averaging
def test_one_client_hands_over_its_weights_and_equal_clients_average_to_themselves():
    for clients in (1, 3):
        replies = [reply(k, [2, 2, 2, 2], head(0), size=k + 1) for k in range(clients)]
        after, _ = strategy(generator_steps=0).aggregate(state(head(1)), replies, STREAM)
        assert all(torch.equal(after.weights[n], head(0)[n]) for n in head(0))


def test_average_is_by_size_of_data():
    replies = [reply(0, [2] * 4, head(0), size=1), reply(1, [2] * 4, head(1), size=3)]
    after, _ = strategy(generator_steps=0).aggregate(state(head(1)), replies, STREAM)
    expected = 0.25 * head(0)["head.bias"] + 0.75 * head(1)["head.bias"]
    torch.testing.assert_close(after.weights["head.bias"], expected)


# learning
def test_teacher_loss_falls_and_heads_come_to_recognise_latents():
    replies = [reply(k, [50, 50, 50, 50], head(k, scale=3)) for k in range(2)]
    now, numbers = state(head(0)), []
    for number in range(8):
        now, row = strategy(generator_lr=3e-3, generator_decay=1.0).aggregate(now, replies, STREAM.child(number))
        numbers.append(row)
    assert numbers[-1]["teacher"] < 0.5 * numbers[0]["teacher"]
    assert numbers[-1]["fidelity"] > 0.9
    assert 0 < numbers[-1]["diversity"] <= 1


def test_labels_seen_add_up_over_rounds():
    replies = [reply(0, [3, 1, 1, 1], head(0)), reply(1, [2, 1, 5, 1], head(1))]
    one, _ = strategy(generator_steps=0).aggregate(state(head(0)), replies, STREAM)
    two, _ = strategy(generator_steps=0).aggregate(one, replies, STREAM)
    assert one.labels_seen.tolist() == [3, 0, 4, 0]
    assert two.labels_seen.tolist() == [6, 0, 8, 0]


def test_generator_goes_down_only_after_the_warmup():
    plan = strategy().plan(state(head(0), [1, 1, 1, 1]), Cohort((0, 3), 1))
    assert plan[0].kinds() == {"weights"}
    plan = strategy().plan(state(head(0), [1, 1, 1, 1]), Cohort((0, 3), 2))
    assert plan[0].kinds() == {"weights", "generator", "label_counts"}
    assert plan[0] is plan[3], "equal payloads are one object"


@pytest.mark.parametrize(
    ("switch", "term"),
    [("teacher_weight", "teacher"), ("diversity_weight", "diversity"), ("student_weight", "student")],
)
def test_a_term_of_weight_zero_is_not_computed(switch, term):
    replies = [reply(0, [3, 3, 3, 3], head(0))]
    _, on = strategy(generator_steps=2, **{switch: 1.0}).aggregate(state(head(1)), replies, STREAM)
    _, off = strategy(generator_steps=2, **{switch: 0.0}).aggregate(state(head(1)), replies, STREAM)
    assert term in on
    assert term not in off


def test_all_terms_off_leave_the_generator_alone():
    old = state(head(0))
    silent = strategy(teacher_weight=0.0, diversity_weight=0.0)
    after, numbers = silent.aggregate(old, [reply(0, [3, 3, 3, 3], head(0))], STREAM)
    assert torch.equal(after.generator["out.weight"], old.generator["out.weight"])
    assert "teacher" not in numbers


def test_student_term_is_a_divergence_that_vanishes_when_student_and_ensemble_agree():
    same = [reply(k, [3, 3, 3, 3], head(0)) for k in range(2)]
    _, agree = strategy(generator_steps=1, student_weight=1.0).aggregate(state(head(0)), same, STREAM)
    _, differ = strategy(generator_steps=1, student_weight=1.0).aggregate(state(head(7)), same, STREAM)
    assert agree["student"] == pytest.approx(0, abs=1e-6)
    assert differ["student"] < -1e-3, "subtracted: the generator looks for where the student is wrong"


def test_all_zero_counts_from_a_hostile_client_do_not_break_the_round():
    _, numbers = strategy(generator_steps=2).aggregate(state(head(0)), [reply(0, [0, 0, 0, 0], head(0))], STREAM)
    assert all(math.isfinite(value) for value in numbers.values())


# head only
def test_head_only_serves_no_global_student():
    assert strategy(share="head").evaluation_payload(state(head(0)), None) is None
    assert strategy(share="all").evaluation_payload(state(head(0)), None) is not None
