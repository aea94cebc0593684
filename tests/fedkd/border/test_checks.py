"""The border: it admits what is usable, refuses everything else with a reason, and never raises."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd.border import checks
from fedkd.border.checks import Expectation
from fedkd.engine import ClientState, Failure, Job, Reply, failed
from fedkd.payload import KINDS, Payload

CLASSES, LATENT, PROBE = 3, 4, 5
SENT = {"head.weight": torch.zeros(CLASSES, LATENT), "norm.running_var": torch.ones(2)}
JOB = Job(task="train", client=1, round=2, payload=Payload(weights=SENT))
EVALUATION = Job(task="evaluate", client=1, round=2, payload=Payload(weights=SENT))

HONEST: dict[str, Any] = {
    "weights": SENT,
    "reference": SENT,
    "generator": {"out.weight": torch.zeros(2, 2)},
    "class_logits": torch.zeros(CLASSES, CLASSES),
    "prototypes": torch.zeros(CLASSES, LATENT),
    "label_counts": torch.tensor([1, 0, 7]),
    "probe_logits": torch.zeros(9, CLASSES),
    "samples": {"x": torch.zeros(4, 2, 2, dtype=torch.uint8), "y": torch.zeros(4, dtype=torch.int64)},
    "numbers": {"loss": 0.5, "steps": 3},
}


def expect(*kinds: str) -> Expectation:
    return Expectation(
        kinds=frozenset(kinds), classes=CLASSES, latent=LATENT, weights=SENT, reference=SENT, probe=PROBE
    )


def reply(knowledge: dict[str, Any], **changes: Any) -> Reply:
    return replace(Reply(client=1, round=2, num_examples=10, payload=Payload(**knowledge)), **changes)


def admit(knowledge: dict[str, Any], **changes: Any) -> Reply | Failure:
    return checks.admit(reply(knowledge, **changes), JOB, expect(*knowledge))


def cause(result: Reply | Failure) -> str:
    assert isinstance(result, Failure)
    assert (result.client, result.round, result.task, result.exchange) == (1, 2, JOB.task, 0)
    assert result.is_rejected
    assert result.what
    return result.cause


def with_entry(name: str, value: Any) -> dict[str, Any]:
    return {"weights": {**SENT, name: value}}


@pytest.mark.parametrize("kind", KINDS)
def test_honest_knowledge_of_each_kind_is_admitted_as_it_is(kind):
    sent = reply({kind: HONEST[kind]})
    tiny.assert_same(tiny.canonical(checks.admit(sent, JOB, expect(kind))), tiny.canonical(sent))


def test_honest_tensors_are_taken_without_a_copy():
    admitted = admit({"weights": SENT})
    assert admitted.payload.weights["head.weight"] is SENT["head.weight"]


def test_all_kinds_at_once_are_admitted():
    assert isinstance(admit(HONEST, numbers={"ce": 1.0}, probe=torch.zeros(PROBE, dtype=torch.uint8)), Reply)


def test_a_failure_passes_as_it_is():
    found = failed(JOB, "it broke", "raised")
    assert checks.admit(found, JOB, expect("weights")) == found
    assert checks.admit_evaluation(JOB, found, CLASSES) == found


@pytest.mark.parametrize(
    "change",
    [
        {"round": 1},
        {"client": 2},
        {"exchange": 1},
        {"task": "evaluate"},
        {"round": "2"},
        {"round": 2.0},
        {"client": True},
    ],
)
def test_a_reply_to_another_job_is_stale(change):
    assert cause(admit({"weights": SENT}, **change)) == "stale"


@pytest.mark.parametrize(
    "count", [0, -1, -(10**30), 10**9 + 1, 10**30, True, 1.0, math.nan, "7", None, torch.tensor(3)]
)
def test_num_examples_is_an_integer_from_one_to_a_billion(count):
    assert cause(admit({"weights": SENT}, num_examples=count)) == "range"


@pytest.mark.parametrize("count", [1, 10**9])
def test_the_ends_of_the_range_of_num_examples_are_admitted(count):
    assert isinstance(admit({"weights": SENT}, num_examples=count), Reply)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_kind_is_refused(kind):
    found = checks.admit(reply({}), JOB, expect(kind))
    assert cause(found) == "kinds"
    assert kind in found.what


@pytest.mark.parametrize("kind", KINDS)
def test_an_extra_kind_is_refused(kind):
    assert cause(checks.admit(reply({kind: HONEST[kind]}), JOB, expect())) == "kinds"


HOSTILE = [
    ("non_finite", with_entry("head.weight", torch.full((CLASSES, LATENT), math.nan))),
    ("non_finite", with_entry("head.weight", torch.tensor([[0.0] * LATENT] * 2 + [[0, 0, 0, -math.inf]]))),
    ("shape", with_entry("head.weight", torch.zeros(1, LATENT))),  # would broadcast
    ("shape", with_entry("head.weight", torch.zeros(()))),
    ("shape", with_entry("head.weight", torch.zeros(LATENT, CLASSES))),
    ("dtype", with_entry("head.weight", torch.zeros(CLASSES, LATENT, dtype=torch.float64))),
    ("dtype", with_entry("head.weight", torch.zeros(CLASSES, LATENT, dtype=torch.int64))),
    ("dtype", with_entry("head.weight", torch.zeros(CLASSES, LATENT, dtype=torch.complex64))),
    ("dtype", with_entry("head.weight", [[0.0] * LATENT] * CLASSES)),
    ("dtype", with_entry("head.weight", None)),
    ("unreadable", with_entry("head.weight", torch.zeros(CLASSES, LATENT).to_sparse())),
    ("range", with_entry("norm.running_var", torch.tensor([1.0, -1e-3]))),
    ("names", with_entry("unknown", torch.zeros(1))),
    ("names", {"weights": {"head.weight": SENT["head.weight"]}}),
    ("names", {"weights": {}}),
    ("names", {"weights": [torch.zeros(1)]}),
    ("unreadable", {"weights": {3: torch.zeros(1), "a": torch.zeros(1)}}),
    ("shape", {"label_counts": torch.zeros(CLASSES + 1, dtype=torch.int64)}),
    ("dtype", {"label_counts": torch.zeros(CLASSES)}),
    ("dtype", {"label_counts": torch.zeros(CLASSES, dtype=torch.bool)}),
    ("range", {"label_counts": torch.tensor([1, -1, 1])}),
    ("range", {"label_counts": torch.tensor([1, 2**62, 1])}),
    ("range", {"label_counts": torch.tensor([1, -(2**63), 1])}),
    ("dtype", {"label_counts": [1, 1, 1]}),
    ("shape", {"class_logits": torch.zeros(CLASSES, CLASSES + 1)}),
    ("non_finite", {"class_logits": torch.full((CLASSES, CLASSES), math.inf)}),
    ("shape", {"prototypes": torch.zeros(CLASSES, LATENT + 1)}),
    ("non_finite", {"prototypes": torch.full((CLASSES, LATENT), math.nan)}),
    ("shape", {"probe_logits": torch.zeros(CLASSES)}),
    ("shape", {"probe_logits": torch.zeros(2, CLASSES + 1)}),
    ("shape", {"probe_logits": torch.zeros(1, 1).expand(100_001, CLASSES)}),
    ("names", {"generator": {3: torch.zeros(1)}}),
    ("names", {"generator": torch.zeros(1)}),
    ("non_finite", {"generator": {"a": torch.tensor([math.nan])}}),
    ("dtype", {"generator": {"a": 1.0}}),
    ("dtype", {"generator": {"a": torch.zeros(1, dtype=torch.complex64)}}),
    ("size", {"samples": {"x": torch.zeros(1).expand(100_001)}}),
    ("size", {"samples": {"x": torch.tensor(1.0)}}),
    ("dtype", {"numbers": {"a": True}}),
    ("dtype", {"numbers": {"a": "1"}}),
    ("dtype", {"numbers": {"a": torch.tensor(1.0)}}),
    ("names", {"numbers": {1: 1.0}}),
    ("names", {"numbers": {"a" * 201: 1.0}}),
    ("names", {"numbers": {"a\u202eb": 1.0}}),
    ("names", {"samples": {"a\nb": torch.zeros(1)}}),
    ("non_finite", {"numbers": {"a": math.nan}}),
    ("non_finite", {"numbers": {"a": -math.inf}}),
    ("range", {"numbers": {"a": 10**400}}),  # too large for a float: math.isfinite would raise
    ("range", {"numbers": {"a": -(2**63) - 1}}),
    ("names", {"numbers": {str(i): 0.0 for i in range(257)}}),
    ("names", {"numbers": [("a", 1.0)]}),
]


@pytest.mark.parametrize(("expected", "knowledge"), HOSTILE)
def test_hostile_knowledge_is_refused_with_its_cause(expected, knowledge):
    assert cause(admit(knowledge)) == expected


@pytest.mark.parametrize(
    ("expected", "numbers"),
    [("non_finite", {"ce": math.nan}), ("dtype", {"ce": False}), ("range", {"ce": 10**400}), ("names", None)],
)
def test_hostile_numbers_beside_the_payload_are_refused(expected, numbers):
    assert cause(admit({"weights": SENT}, numbers=numbers)) == expected
    ends = {"correct": 1.0, "loss_sum": 1.0}
    evaluation = Reply(client=1, round=2, task="evaluate", num_examples=2, numbers=numbers and ends | numbers)
    assert cause_of_evaluation(evaluation) == expected


@pytest.mark.parametrize(
    ("expected", "probe"),
    [
        ("shape", torch.zeros(PROBE - 1, dtype=torch.uint8)),
        ("dtype", torch.zeros(PROBE)),
        ("range", torch.full((PROBE,), CLASSES, dtype=torch.uint8)),
        ("dtype", [0] * PROBE),
    ],
)
def test_a_hostile_probe_is_refused(expected, probe):
    assert cause(admit({"weights": SENT}, probe=probe)) == expected


@pytest.mark.parametrize("seconds", [math.nan, math.inf, "1", None, 10**400])
def test_seconds_that_are_no_number_are_refused(seconds):
    assert cause(admit({"weights": SENT}, seconds=seconds))


@pytest.mark.parametrize("payload", [None, {}, "payload", {"weights": SENT}])
def test_a_payload_that_is_none_is_refused(payload):
    assert cause(admit({"weights": SENT}, payload=payload)) == "unreadable"


@pytest.mark.parametrize("result", [None, 0, "reply", Payload(weights=SENT)])
def test_what_is_no_reply_is_refused(result):
    assert cause(checks.admit(result, JOB, expect("weights"))) == "unreadable"


def test_a_refusal_quotes_no_more_than_a_line_of_what_the_client_chose():
    found = admit({"weights": {"x" * 10_000: torch.zeros(1)}})
    assert cause(found) == "names"
    assert len(found.what) <= checks.MAX_REASON


def test_a_refusal_says_what_was_expected():
    found = admit(with_entry("head.weight", torch.zeros(9, LATENT)))
    assert found.what == "weights: 'head.weight' has shape (9, 4), expected (3, 4)"
    found = admit(with_entry("head.weight", torch.full((CLASSES, LATENT), math.nan)))
    assert found.what == "weights: 'head.weight': 12 of 12 values are not finite"


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl"])), st.integers(0, 60))
def test_what_is_shown_of_a_clients_words_cannot_steer_a_terminal(text, most):
    shown = checks.printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    assert shown == text[:most] or not text[:most].isprintable()


def test_lines_are_kept_where_they_are_wanted():
    assert checks.printable("a\nb\x1b[2Jc", keep="\n") == "a\nb\\x1b[2Jc"
    assert checks.Refused("names", "kind\x07").what == "kind\\x07"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tensors = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64]),
    st.floats(width=32) | st.sampled_from([math.nan, math.inf, -1.0]),
)
values = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=4,
)
replies = st.builds(
    Reply,
    client=scalars | st.just(1),
    round=scalars | st.just(2),
    task=scalars | st.sampled_from(["train", "evaluate"]),
    exchange=scalars | st.just(0),
    payload=values | st.builds(Payload, **dict.fromkeys(KINDS, values)),
    num_examples=scalars | st.just(5),
    numbers=values,
    probe=values,
    by_label=values,
    seconds=values,
)


@given(replies)
def test_the_border_never_raises_and_admits_no_garbage(garbage):
    assert isinstance(checks.admit(garbage, JOB, expect(*KINDS)), Failure)
    assert isinstance(checks.admit_evaluation(EVALUATION, garbage, CLASSES), Failure | Reply)


@given(st.sampled_from(KINDS), values)
def test_each_kind_is_refused_or_admitted_but_never_raises(kind, value):
    found = admit({kind: value})
    assert isinstance(found, Failure) or found.payload.kinds() == {kind}


def cause_of_evaluation(result: Reply) -> str:
    found = checks.admit_evaluation(EVALUATION, result, CLASSES)
    assert isinstance(found, Failure)
    assert found.task == "evaluate"
    return found.cause


def evaluated(**changes: Any) -> Reply:
    numbers = {"correct": 4.0, "loss_sum": 1.5}
    return replace(Reply(client=1, round=2, task="evaluate", num_examples=5, numbers=numbers), **changes)


@pytest.mark.parametrize(
    ("expected", "seen", "right"),
    [
        ("range", [3, 1, 1], [3, 1, 1]),  # 5 right, where `correct` says 4
        ("range", [3, 1, 0], [3, 1, 0]),  # of 4 images, where 5 were classified
        ("range", [3, 0, 2], [2, 1, 1]),  # right where there was none
        ("range", [3, 3, -1], [3, 1, 0]),
        ("shape", [3, 2], [2, 2]),
    ],
)
def test_counts_by_label_must_add_up(expected, seen, right):
    assert cause_of_evaluation(evaluated(by_label=torch.tensor([seen, right]))) == expected


def test_an_honest_evaluation_with_counts_by_label_is_admitted():
    sent = evaluated(by_label=torch.tensor([[3, 1, 1], [3, 0, 1]]))
    assert isinstance(checks.admit_evaluation(EVALUATION, sent, CLASSES), Reply)


@pytest.mark.parametrize(
    ("expected", "logits"),
    [
        ("shape", None),
        ("shape", torch.zeros(4, CLASSES)),
        ("shape", torch.zeros(5, CLASSES, dtype=torch.float64)),
        ("shape", [[0.0] * CLASSES] * 5),
        ("admitted", torch.full((5, CLASSES), math.nan)),  # a metric that is no number is null in the ledger
    ],
)
def test_logits_come_if_they_are_asked_for_and_fit(expected, logits):
    asked = replace(EVALUATION, wants_logits=True)
    found = checks.admit_evaluation(asked, evaluated(logits=logits), CLASSES)
    assert (found.cause if isinstance(found, Failure) else "admitted") == expected


def test_logits_that_nobody_asked_for_are_refused():
    assert cause_of_evaluation(evaluated(logits=torch.zeros(5, CLASSES))) == "shape"


def test_an_honest_evaluation_is_admitted_as_it_is():
    sent = evaluated()
    assert tiny.canonical(checks.admit_evaluation(EVALUATION, sent, CLASSES)) == tiny.canonical(sent)


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("range", {"numbers": {"correct": 6.0, "loss_sum": 0.0}}),
        ("range", {"numbers": {"correct": -1.0, "loss_sum": 0.0}}),
        ("range", {"numbers": {"loss_sum": 0.0}}),
        ("range", {"numbers": {"correct": 1.0}}),
        ("range", {"num_examples": 0}),
        ("non_finite", {"numbers": {"correct": math.nan, "loss_sum": 0.0}}),
        ("stale", {"task": "train"}),
        ("stale", {"task": "evaluate_pooled"}),
        ("stale", {"round": 1}),
        ("unreadable", {"num_examples": torch.ones(2), "round": torch.ones(2)}),
    ],
)
def test_a_hostile_evaluation_is_refused(expected, changes):
    assert cause_of_evaluation(evaluated(**changes)) == expected


def test_a_client_state_is_not_the_borders_business():
    """Devices keep their own; in a simulation it never crosses a border of trust."""
    assert isinstance(admit({"weights": SENT}, state=ClientState(last_round=2)), Reply)


# What only the algorithm can judge


def inspect(reply: Reply) -> None:
    checks.check_rows(reply, 9)


def test_rows_are_those_that_were_asked_for():
    sent = reply({"probe_logits": torch.zeros(9, CLASSES)})
    assert isinstance(checks.admit(sent, JOB, expect("probe_logits"), inspect), Reply)
    for rows in (0, 8, 10):
        found = checks.admit(reply({"probe_logits": torch.zeros(rows, CLASSES)}), JOB, expect("probe_logits"), inspect)
        assert cause(found) == "shape"
        assert found.what == f"probe_logits has {rows} rows, expected 9"


def test_of_a_reply_without_logits_no_rows_are_asked():
    sent = reply({"weights": SENT})
    assert isinstance(checks.admit(sent, JOB, expect("weights"), inspect), Reply)


def test_the_algorithm_looks_last():
    seen = []
    checks.admit(reply({"label_counts": torch.tensor([1, -1, 1])}), JOB, expect("label_counts"), seen.append)
    assert seen == []
    admitted = checks.admit(reply({"label_counts": torch.tensor([1, 1, 1])}), JOB, expect("label_counts"), seen.append)
    assert seen == [admitted]


def test_what_it_refuses_is_a_failure_with_its_cause_and_a_reason_of_bounded_length():
    def refuse(reply: Reply) -> None:
        raise checks.Refused("range", "x" * 10_000)

    found = checks.admit(reply({"weights": SENT}), JOB, expect("weights"), refuse)
    assert cause(found) == "range"
    assert len(found.what) == checks.MAX_REASON


def test_what_it_stumbles_on_is_unreadable():
    def stumble(reply: Reply) -> None:
        raise KeyError("x")

    assert cause(checks.admit(reply({"weights": SENT}), JOB, expect("weights"), stumble)) == "unreadable"


@pytest.mark.parametrize(("what", "knowledge"), [(w, k["weights"]) for w, k in HOSTILE if "weights" in k])
def test_a_reference_is_checked_as_weights_are(what, knowledge):
    assert cause(admit({"reference": knowledge})) == what


# What a plugin in this process may hand over


def test_tensors_that_require_gradients_are_taken_without_their_graph():
    leaf = torch.zeros(CLASSES, LATENT, requires_grad=True)
    for entry in (leaf, leaf * 2, torch.nn.Parameter(torch.zeros(CLASSES, LATENT))):
        state = ClientState(memory={"deep": [{"entry": entry}]})
        admitted = admit(with_entry("head.weight", entry), state=state)
        for taken in (admitted.payload.weights["head.weight"], admitted.state.memory["deep"][0]["entry"]):
            assert (type(taken), taken.requires_grad, taken.grad_fn) == (torch.Tensor, False, None)


def test_what_is_admitted_is_contiguous_and_alone_in_its_memory():
    large = torch.zeros(LATENT, 9)
    with torch.inference_mode():
        inferred = torch.zeros(CLASSES, LATENT)
    for entry in (large[:, :CLASSES].T, large.flatten()[: CLASSES * LATENT].view(CLASSES, LATENT), inferred):
        taken = admit(with_entry("head.weight", entry)).payload.weights["head.weight"]
        assert (taken.is_contiguous(), taken.is_inference()) == (True, False)
        assert taken.untyped_storage().nbytes() == 4 * CLASSES * LATENT


class Fickle(dict[str, Any]):
    """Honest when it is looked at, something else later."""

    def items(self):
        first, self.items = super().items(), lambda: {"head.weight": torch.full((CLASSES, LATENT), math.nan)}.items()
        return first


def test_a_mapping_that_changes_after_the_check_changes_nothing_that_was_admitted():
    weights = Fickle(SENT)
    admitted = admit({"weights": weights})
    weights.clear()
    assert type(admitted.payload.weights) is dict
    assert set(admitted.payload.weights) == set(SENT)


def test_numbers_and_names_are_taken_as_pythons_own():
    class Name(str):
        pass

    admitted = admit({"numbers": {Name("loss"): np.float64(0.5)}}, numbers={"ce": np.float64(1)}, seconds=np.float64(2))
    (named,) = admitted.payload.numbers.items()
    assert [type(part) for part in (*named, admitted.numbers["ce"], admitted.seconds)] == [str, float, float, float]


@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        ("dtype", None),
        ("dtype", ClientState(kept={"w": [1.0]})),
        ("dtype", ClientState(memory={"code": print})),
        ("dtype", ClientState(memory={(1, 2): 3})),
        ("dtype", ClientState(optimiser={"x": np.zeros(2)})),
        ("range", ClientState(epoch=1.0)),
        ("range", ClientState(position=-1)),
        ("range", ClientState(last_round=10**30)),
        ("non_finite", ClientState(kept={"w": torch.tensor([math.nan])})),
        ("non_finite", ClientState(memory={"deep": {"w": torch.tensor([1e38, math.inf])}})),
        ("non_finite", ClientState(optimiser={"square": {"w": torch.tensor([-math.inf])}})),
    ],
)
def test_a_memory_that_could_not_be_stored_or_trained_on_is_refused(wanted, state):
    assert cause(admit({"weights": SENT}, state=state)) == wanted


def test_large_finite_values_are_not_taken_for_infinite_ones():
    """Their sum overflows."""
    assert isinstance(admit(with_entry("head.weight", torch.full((CLASSES, LATENT), 3e38))), Reply)


def test_reasons_and_tracebacks_are_of_bounded_length_and_known_causes():
    for told in (failed(JOB, "a" * 14_000, "invented", "b" * 10**6), failed(JOB, "\x1b[2J" * 9000, "raised")):
        found = checks.admit(told, JOB, expect("weights"))
        assert len(found.what) <= checks.MAX_REASON
        assert len(found.detail) <= checks.MAX_DETAIL
        assert (found.cause, found.what.isprintable()) == ("raised", True)


def test_an_error_of_our_own_checks_is_of_bounded_length_too():
    def inspect(reply):
        raise ValueError("c" * 14_000)

    found = checks.admit(reply({"weights": SENT}), JOB, expect("weights"), inspect)
    assert (found.cause, len(found.what)) == ("unreadable", checks.MAX_REASON)
