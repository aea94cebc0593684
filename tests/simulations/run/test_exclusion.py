"""`resume --without`: a run whose state a client has spoiled continues without it, and so does every later resume."""

import json
from dataclasses import replace

import pytest
from pilots import SMALL, resume, start

from fedkd.configuration import compose
from fedkd.engine import Job, failed
from fedkd.errors import ConfigError, FolderError
from fedkd.payload import Payload
from fedkd.record import ledger
from simulations.cli import main
from simulations.engines import choose
from simulations.engines.inline import Inline
from simulations.run import advice
from simulations.run.exclusion import Exclusion
from simulations.system.interrupts import Stop

WORDS = ("rounds=6", "checkpoint.every=1", "checkpoint.keep=9")


class Stopping(Inline):
    """An engine that is interrupted in the middle of a round."""

    at = 99

    def run(self, jobs, deadline=None):
        for result in super().run(jobs, deadline):
            if result.round == type(self).at:
                raise Stop
            yield result


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped in round 4, and an engine that can be stopped again."""
    monkeypatch.setattr(choose, "Inline", Stopping)
    monkeypatch.setattr(Stopping, "at", 4)
    start(tmp_path, *WORDS)
    monkeypatch.setattr(Stopping, "at", 99)
    return tmp_path / "pilot"


def cohorts(place):
    return [row["cohort"] for row in ledger.rows(place / "metrics.jsonl")]


def test_a_client_is_left_out_from_the_next_round_on(stopped):
    found = resume(stopped.parent, stopped, exclusion=Exclusion([2]))
    assert found["status"] == "done"
    assert cohorts(stopped) == [[0, 1, 2, 3]] * 3 + [[0, 1, 3]] * 3
    assert json.loads((stopped / "run.json").read_text())["without"] == [{"client": 2, "after": 3}]
    events = ledger.rows(stopped / "events.jsonl")
    assert [e["what"] for e in events if e["event"] == "warn"] == ["client 2 is left out from round 4 on: --without"]


def test_so_many_are_never_left_out_that_no_round_could_be(stopped):
    """Whoever is left out is noted for good: a run without clients could never be resumed again."""
    for everyone in [[0, 1, 2, 3], [3, 2, 1, 0, 0]]:
        with pytest.raises(ConfigError, match="--without leaves 0 of 4 clients, and a round needs 1"):
            resume(stopped.parent, stopped, exclusion=Exclusion(everyone))
    assert "without" not in json.loads((stopped / "run.json").read_text())
    with pytest.raises(ConfigError, match="leaves 1 of 4 clients, and a round needs 2"):
        Exclusion([2]).check({"num_clients": 4, "without": [{"client": 0}, {"client": 1}]}, stopped, quorum=2)
    assert resume(stopped.parent, stopped, exclusion=Exclusion([1, 1]))["status"] == "done"
    assert json.loads((stopped / "run.json").read_text())["without"] == [{"client": 1, "after": 3}]


@pytest.mark.parametrize("back_to", [0, 2])
def test_from_goes_back_to_a_state_that_is_not_spoiled_yet(stopped, back_to):
    resume(stopped.parent, stopped, exclusion=Exclusion([2], back_to))
    assert cohorts(stopped) == [[0, 1, 2, 3]] * back_to + [[0, 1, 3]] * (6 - back_to)
    assert json.loads((stopped / "run.json").read_text())["without"] == [{"client": 2, "after": back_to}]


def test_a_later_resume_leaves_out_the_same_client_and_gives_the_same_bytes(stopped, monkeypatch):
    """Interrupted before anything is committed again: run.json alone knows."""
    monkeypatch.setattr(Stopping, "at", 1)
    resume(stopped.parent, stopped, exclusion=Exclusion([2], 0))
    assert cohorts(stopped) == []
    monkeypatch.setattr(Stopping, "at", 5)
    resume(stopped.parent, stopped)
    monkeypatch.setattr(Stopping, "at", 99)
    resume(stopped.parent, stopped)
    assert cohorts(stopped) == [[0, 1, 3]] * 6
    again = stopped.parent / "again"
    monkeypatch.setattr(Stopping, "at", 1)
    start(stopped.parent, *WORDS, name="again")
    monkeypatch.setattr(Stopping, "at", 99)
    resume(stopped.parent, again, exclusion=Exclusion([2], 0))
    assert (again / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()


def test_mistakes_are_said_before_anything_is_removed(stopped):
    before = sorted((stopped / "checkpoints").iterdir())
    for words, what in (
        (([4],), "--without 4: the run has no such client"),
        (((), 1), "--from 1 without --without"),
        (([1], -1), "--from -1 is not a round"),
    ):
        with pytest.raises(ConfigError, match=what):
            resume(stopped.parent, stopped, exclusion=Exclusion(*words))
    assert sorted((stopped / "checkpoints").iterdir()) == before


def test_no_client_can_be_left_out_of_a_run_that_is_done(stopped):
    resume(stopped.parent, stopped)
    with pytest.raises(FolderError, match="the run is done"):
        resume(stopped.parent, stopped, exclusion=Exclusion([2]))


def test_the_command_line_takes_several_clients(stopped, capsys):
    words = ["resume", str(stopped), "--without", "1", "--without", "2", "--from", "2", "--quiet"]
    assert main.main(words) == 0
    assert cohorts(stopped) == [[0, 1, 2, 3]] * 2 + [[0, 3]] * 4


def test_a_run_that_fails_after_good_rounds_is_told_of_the_way_back(tmp_path):
    """Not in round 1: nobody can have spoiled the state that a run begins with."""
    job = Job(task="train", client=0, round=3, payload=Payload())
    for number, is_told in ((3, True), (1, False)):
        failures = [
            failed(replace(job, round=number), "weights: not finite", cause) for cause in ("non_finite", "unsettled")
        ]
        found = advice.after(failures, compose.resolve([*SMALL, *WORDS]).config, tmp_path, on_devices=False)
        assert ("--without CLIENT --from ROUND" in found.text) == is_told
        assert "Lower train.lr" in found.text
