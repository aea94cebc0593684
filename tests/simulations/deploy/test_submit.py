"""A follower of a run on devices sees its rounds and its end by what is in its folder, whatever the clock says."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedkd.record import ledger
from simulations.deploy import submit
from simulations.deploy.submit import Follower
from simulations.run import console_text, run_folder


class Shown:
    """A screen that keeps what it is told."""

    def __init__(self) -> None:
        self.head: Any = None
        self.before: Any = None
        self.rounds: list[int] = []

    def phase(self, text: str) -> None:
        pass

    def begin(self, head: Any, rows: Any) -> None:
        self.head, self.before = head, [row["round"] for row in rows]

    def round(self, row: Any, seconds: float, failure: str) -> None:
        self.rounds.append(row["round"])


class Run:
    """What the process of a run leaves in its folder; its clock stands still, long ago."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path, self.rows = path, 0

    def note(self, state: str) -> None:
        new = self.path / ".new"
        new.write_text(json.dumps({"state": state}))
        os.utime(new, (1e9, 1e9))
        new.replace(self.path / "run.json")

    def event(self, event: str, number: int) -> None:
        self._append(ledger.EVENTS, {"at": 1e9, "event": event, "round": number})

    def play(self, *rounds: int) -> None:
        for number in rounds:
            self._append("metrics.jsonl", {"round": number})
            self._append("timings.jsonl", {"round": number, "at": 1e9, "total": 1.0})

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self.path / name).open("ab") as file:
            file.write(ledger.encode(row))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(console_text, "head", lambda *_: "head")
    monkeypatch.setattr(submit, "BEGIN_SECONDS", -1.0)  # so that any wait has been too long
    return Run(tmp_path / "run")


def follower(run: Run) -> tuple[Follower, Shown]:
    shown: Any = Shown()
    return Follower(SimpleNamespace(devices=[1]), None, run.path, shown), shown  # type: ignore[arg-type]


def test_a_run_has_ended_though_the_clock_was_set_back(run: Run) -> None:
    seen, shown = follower(run)
    run.note("running")
    run.event("start", 0)
    run.play(1, 2)
    run.note("done")
    seen.follow()
    assert (shown.before, shown.rounds) == ([], [1, 2])


def test_only_the_new_rounds_of_a_resumed_run_are_shown(run: Run) -> None:
    run.event("start", 0)
    run.play(1, 2)
    run.note("stopped")
    seen, shown = follower(run)
    assert not seen._has_ended(), "how an earlier process ended is no end of this one"
    run.note("running")
    run.event("resume", 2)
    run.play(3)
    run.note("done")
    seen.follow()
    assert (shown.before, shown.rounds) == ([1, 2], [3])


def test_a_run_that_is_held_has_not_ended(run: Run) -> None:
    seen, _ = follower(run)
    run.note("stopped")
    held = run_folder.reopen(run.path)
    assert not seen._has_ended()
    held.release()
    assert seen._has_ended()
