"""A fork starts from a commit of another run: what it shares, what it changes, what it refuses."""

import json

import pytest
from pilots import QUIET, resume, start

import fedkd
from fedkd.errors import CheckpointError, ConfigError, FedkdError
from fedkd.record import ledger
from simulations.analysis import run_record
from simulations.cli import main
from simulations.report import facts
from simulations.run import fork, run_folder


@pytest.fixture
def pilot(tmp_path):
    """A run of four rounds with commits of rounds 2 and 4."""
    start(tmp_path)
    return tmp_path / "pilot"


def forked(place, *words, at=None, name="fork"):
    summary = fork.start(place, words, at, runs=place.parent, name=name, options=QUIET)
    return place.parent / name, summary


def test_a_fork_that_changes_nothing_repeats_its_parent(pilot):
    place, summary = forked(pilot, at=2)
    assert summary["status"] == "done"
    for name in ("metrics.jsonl", "clients.jsonl", "checkpoints/round-0004/server.safetensors"):
        assert (place / name).read_bytes() == (pilot / name).read_bytes()


def test_a_fork_has_its_parents_rows_and_then_goes_its_own_way(pilot):
    before = (pilot / "metrics.jsonl").read_bytes()
    place, summary = forked(pilot, "rounds=+2", "train.lr=0.5", "clients_per_round=2")
    assert summary["rounds"] == 6
    assert (pilot / "metrics.jsonl").read_bytes() == before
    assert (place / "metrics.jsonl").read_bytes().startswith(before)
    assert [len(row["cohort"]) for row in ledger.rows(place / "metrics.jsonl")] == [4, 4, 4, 4, 2, 2]
    assert resume(place.parent, place, overrides=["rounds=7"])["rounds"] == 7  # a fork is a run like others


def test_lineage_is_in_run_json_on_the_screen_and_in_the_report(pilot, capsys):
    place, _ = forked(pilot, at=2)
    parent = run_folder.info(place)["parent"]
    manifest = json.loads((pilot / "checkpoints" / "round-0002" / "manifest.json").read_text())
    assert parent == {"run": "pilot", "round": 2, "sha256": manifest["sha256"]}
    child, _ = forked(place, "rounds=+1", name="child")
    assert run_folder.info(child)["parent"] | {"sha256": ""} == {
        "run": "fork",
        "round": 4,
        "sha256": "",
        "parent": parent,
    }
    assert main.main(["show", str(child)]) == 0
    assert "fork of fork at round 4, a fork of pilot at round 2" in capsys.readouterr().out
    record = run_record.read("", "fedavg", 0, child)
    texts = {line.name: line.text(record) for line in facts.LINES}
    assert texts["fork of"] == "fork at round 4, a fork of pilot at round 2"


WHY = {
    "seed=1": "it decides which samples a client has",
    "partition.alpha=2": "it decides which samples a client has",
    "data=mnist": "it decides which samples a client has",
    "clients=5": "it decides which samples a client has",
    "students=lenet5": "the weights would not fit",
    "parts=[teacher]": "that of the parent's parts",
    "strategy=scaffold": "that of the parent's algorithm",
    "evaluate.on=validation": "which samples the clients train on",
    "privacy.label_epsilon=1": "cannot be taken back",
}


def test_what_a_state_depends_on_cannot_change(pilot):
    for word, why in WHY.items():
        with pytest.raises(ConfigError, match=f"a fork cannot change {word.partition('=')[0]}") as caught:
            fork.plan(pilot, [word], None)
        assert why in caught.value.message()


def test_a_round_that_is_not_there_and_a_fork_without_rounds_are_refused(pilot, capsys):
    with pytest.raises(CheckpointError, match="--at 3: the run has no commit of that round") as caught:
        fork.plan(pilot, [], 3)
    assert "it has those of rounds 2, 4" in caught.value.message()
    assert main.main(["fork", "pilot", "--runs", str(pilot.parent)]) == 2
    assert "nothing is left to run: the fork starts from round 4, and rounds=4" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="gives no number of rounds"):
        fork.plan(pilot, ["rounds=+-1"], None)
    assert [path.name for path in run_folder.listed(pilot.parent)] == ["pilot"]


def test_a_state_that_does_not_fit_leaves_nothing_behind(tmp_path, capsys):
    start(tmp_path, "strategy=fedgen", "strategy.generator_steps=1", "strategy.regularised_steps=1")
    words = ["strategy.hidden=7", "rounds=+1", "--name", "fork", "--runs", str(tmp_path)]
    assert main.main(["fork", "pilot", *words]) == 6
    shown = capsys.readouterr().err
    assert "the state of round 4 does not fit the changed values" in shown
    assert not (tmp_path / "fork").exists()


def test_python_forks_with_the_same_words(pilot):
    made = fedkd.load(pilot).fork("train.lr=0.5", at=2, rounds="+1", name="python", quiet=True, clients_per_round=2)
    assert (made.folder.name, made.config["train"]["lr"], made.config["rounds"]) == ("python", 0.5, 3)
    info = run_folder.info(made.folder)
    assert info["parent"]["round"] == 2
    assert info["command"][:2] == ["fedkd", "fork"]


def test_a_damaged_commit_is_not_forked(pilot):
    (pilot / "checkpoints" / "round-0004" / "state.json").write_text("{}")
    with pytest.raises(FedkdError, match="is damaged"):
        forked(pilot, "rounds=5")
    assert not (pilot.parent / "fork").exists()
