"""A sample of each enumeration, so that none of them rots; whole they are commands (their docstrings say which)."""

import pytest
from enumerations import damaged, interrupted, modalities, mutated


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return interrupted.play(tmp_path_factory.mktemp("whole").resolve(), rounds=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return damaged.play(tmp_path_factory.mktemp("original"))


@pytest.mark.parametrize("act", ["kill", "full"])
def test_a_run_that_ended_in_the_middle_of_a_checkpoint_is_resumed_to_the_same_bytes(whole, act):
    at = next(k for k, met in enumerate(whole.met, 1) if met.startswith("half a write checkpoints/.round-0002/state"))
    assert interrupted.one(whole, act, at) == ""


def test_damage_to_checkpoints_is_passed_over_or_refused(original):
    outcomes = [damaged.one(original, 0, number) for number in range(25)]
    assert [outcome for outcome in outcomes if outcome[1]] == []


def test_the_judge_of_damage_sees_a_state_that_is_not_what_was_stored(original, monkeypatch):
    monkeypatch.setattr(damaged, "_is_same", lambda taken, stored: False)
    monkeypatch.setattr(damaged, "contents_or_none", lambda place: {"state.json": b"another"})
    assert "is not what its files hold" in damaged.judge(original, original.folder)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_mutated_messages_are_refused_or_fit():
    found = mutated.cases(["fedavg"])
    outcomes = [mutated.one(found, 0, number) for number in range(40)]
    assert [outcome for outcome in outcomes if outcome[2]] == []
    assert {outcome for _, outcome, _ in outcomes} >= {"admitted", "failure"}


@pytest.mark.parametrize(
    "cell",
    [
        ("rows", "mlp", ("strategy=fedgen",)),
        ("rows", "mlp", ("strategy=fedavg", "parts=[graph]")),
        ("signals", "cnn1d", ("strategy=fedd2s",)),
        ("signals", "cnn1d", ("strategy=fedbn",)),
        ("signals", "cnn1d", ("strategy=fedfuse",)),
        ("tokens", "textcnn", ("strategy=fedproto",)),
        ("tokens", "textcnn", ("strategy=fedavg", "parts=[mixup]")),
        ("tokens", "gru", ("strategy=fedd2s", "strategy.head_arch=tail")),
        ("tokens", "gru", ("strategy=knfu",)),
        ("tokens", "gru", ("strategy=fedavg", "proxy=noise", "proxy.size=20")),
    ],
    ids=lambda cell: " ".join((*cell[:2], *cell[2])),
)
def test_methods_of_every_kind_play_samples_of_every_kind_or_say_why_not(cell):
    assert modalities.one(cell) == ""


def test_the_judge_of_kinds_sees_a_refusal_that_nobody_expects(monkeypatch):
    monkeypatch.setattr(modalities, "REFUSED", {})
    assert "generates images" in modalities.one(("rows", "mlp", ("strategy=fedfuse",)))
