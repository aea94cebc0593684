"""A longer run is the one that had as many rounds from the start, or it says why it is not."""

import json

import pytest
from pilots import resume, start

from fedkd.errors import CheckpointError, ConfigError
from fedkd.record import ledger
from simulations.cli import main
from simulations.engines import choose
from simulations.engines.inline import Inline
from simulations.run import extension, run_folder
from simulations.run.run_folder import RunFolder
from simulations.system.interrupts import Stop

KINDS = (
    "strategy=fedavg",
    "strategy=scaffold train.lr_decay=0.9",
    "strategy=fedgen strategy.generator_steps=2 strategy.regularised_steps=1 clients_per_round=2",
    "strategy=feddistill",
    "strategy=fedproto checkpoint.keep=1",
    "strategy=fedd2s strategy.drop_period=1",
    "strategy=fedavg evaluate.every=3",  # the old last round was evaluated out of turn
    "strategy=fedmd proxy=held-out proxy.size=20 evaluate.pooled_every=3 checkpoint.every=4",  # from the beginning
)


def records(place):
    """The ledger and the last commit; without the length of timings.jsonl, which holds clock times."""
    last = place / "checkpoints" / "round-0006"
    state = json.loads((last / "state.json").read_text())
    del state["ledger"]["timings.jsonl"]
    head = json.loads((last / "manifest.json").read_text())
    names = ("metrics.jsonl", "clients.jsonl")
    tensors = ("server.safetensors", "clients.safetensors")
    return [
        *((place / name).read_bytes() for name in names),
        *((last / name).read_bytes() for name in tensors),
        state,
        head["config"],
        head["score"],
    ]


@pytest.mark.parametrize("words", KINDS)
def test_a_run_made_longer_is_byte_for_byte_the_longer_run(tmp_path, words):
    start(tmp_path, *words.split(), "rounds=6", name="long")
    start(tmp_path, *words.split(), "rounds=4")
    assert resume(tmp_path, tmp_path / "pilot", overrides=["rounds=+2"])["rounds"] == 6
    assert records(tmp_path / "pilot") == records(tmp_path / "long")


def test_the_folder_says_that_it_was_made_longer(tmp_path, capsys):
    start(tmp_path)
    place = tmp_path / "pilot"
    config = (place / "config.yaml").read_text()
    assert main.main(["resume", "pilot", "rounds=5", "--runs", str(tmp_path)]) == 0
    assert (place / "config.yaml").read_text() == config.replace("rounds: 4", "rounds: 5")
    info = run_folder.info(place)
    assert (info["num_rounds"], info["state"], info["round"]) == (5, "done", 5)
    (entry,) = info["extended"]
    assert (entry["from"], entry["to"], entry["commits_to"]) == (4, 5, 4)
    assert entry["at"].startswith("20")
    resume(tmp_path, place, overrides=["rounds=+1"])
    assert [entry["to"] for entry in run_folder.info(place)["extended"]] == [5, 6]
    assert resume(tmp_path, place, overrides=["rounds=6"])["rounds"] == 6  # the same command again
    capsys.readouterr()
    assert main.main(["resume", "pilot", "--runs", str(tmp_path)]) == 0
    assert "was finished before" in capsys.readouterr().out


def test_a_stopped_run_is_made_longer_too(tmp_path, monkeypatch):
    class Stopping(Inline):
        def run(self, jobs, deadline=None):
            if jobs[0].round == 3:
                raise Stop
            yield from super().run(jobs, deadline)

    start(tmp_path, "rounds=6", name="long")
    with monkeypatch.context() as patched:
        patched.setattr(choose, "Inline", Stopping)
        assert start(tmp_path)["rounds"] == 2
        assert resume(tmp_path, tmp_path / "pilot", overrides=["rounds=+2"])["status"] == "stopped"
    resume(tmp_path, tmp_path / "pilot")
    assert records(tmp_path / "pilot") == records(tmp_path / "long")


def test_a_kill_between_run_json_and_config_yaml_is_mended_by_the_next_resume(tmp_path, monkeypatch):
    start(tmp_path)
    before = (tmp_path / "pilot" / "config.yaml").read_bytes()
    write = RunFolder.write_text

    def killed(folder, name, text):
        if name == "config.yaml":
            raise KeyboardInterrupt
        write(folder, name, text)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path, tmp_path / "pilot", overrides=["rounds=5"])
    assert (tmp_path / "pilot" / "config.yaml").read_bytes() == before
    assert run_folder.state(tmp_path / "pilot") == "stopped"
    assert resume(tmp_path)["rounds"] == 5
    assert "rounds: 5 " in (tmp_path / "pilot" / "config.yaml").read_text()


def test_a_schedule_up_to_the_last_round_is_refused_unless_the_user_wants_it_anyway(tmp_path, capsys):
    start(tmp_path, "train.schedule=cosine", name="cosine")
    with pytest.raises(CheckpointError, match=r"with train\.schedule=cosine the number of rounds decides"):
        resume(tmp_path, tmp_path / "cosine", overrides=["rounds=5"])
    start(tmp_path, "strategy=fedd2s")
    place = tmp_path / "pilot"
    assert main.main(["resume", "pilot", "rounds=+2", "--runs", str(tmp_path)]) == 6
    shown = capsys.readouterr().err
    assert "with strategy.drop_period=null the number of rounds decides what happens in each" in shown
    assert "--anyway" in shown
    assert "extended" not in run_folder.info(place)
    before = (place / "metrics.jsonl").read_bytes()
    assert main.main(["resume", "pilot", "rounds=+2", "--anyway", "--runs", str(tmp_path)]) == 0
    assert len(ledger.rows(place / "metrics.jsonl")) == 6
    assert (place / "metrics.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("text", ["+0", "0", "-1", "+-1", "+", "many", "1.5", "9" * 5000])
def test_what_is_no_number_of_rounds_is_refused(text):
    with pytest.raises(ConfigError, match="gives no number of rounds"):
        extension.parse([f"rounds={text}"], 4, is_named=True)


def test_fewer_rounds_other_words_and_an_unnamed_run_are_refused(tmp_path):
    start(tmp_path)
    place = tmp_path / "pilot"
    with pytest.raises(CheckpointError, match="cannot become shorter: it has 4 rounds, rounds=3 are fewer"):
        resume(tmp_path, place, overrides=["rounds=3"])
    with pytest.raises(CheckpointError, match="keeps the configuration"):
        resume(tmp_path, place, overrides=["rounds=5", "train.lr=1"])
    (place / "run.json").write_text(json.dumps({**run_folder.info(place), "state": "stopped"}))
    with pytest.raises(ConfigError, match="which run"):
        resume(tmp_path, overrides=["rounds=5"])


def test_a_run_of_a_comparison_stays_as_long_as_the_others(tmp_path):
    start(tmp_path / "runs")
    (tmp_path / ledger.PLAN).write_text("")
    with pytest.raises(CheckpointError, match="part of a comparison"):
        resume(tmp_path, tmp_path / "runs" / "pilot", overrides=["rounds=5"])
