"""The live screen: what is on it, that it fits, and that a pipe gets plain lines."""

import io
import json
import time

import pytest
from rich.console import Console

from simulations.analysis.plan import Cell
from simulations.compare import progress_table
from simulations.compare.cell_process import CellResult
from simulations.compare.progress_table import LineDisplay, Progress, TableDisplay


def progress(tmp_path, method, seed=1, setting="", rounds=10, state="waiting"):
    cell = Cell(setting, method, seed, (), "", f"runs/{method}{setting}-{seed}")
    path = tmp_path / cell.folder
    path.mkdir(parents=True)
    return Progress(cell, path / "metrics.jsonl", rounds, state)


def play(each, rounds, accuracy=0.5):
    with each.ledger.open("a") as file:
        for number in range(each.rounds + 1, each.rounds + rounds + 1):
            file.write(json.dumps({"round": number, "accuracy": {"global": accuracy}}) + "\n")


def test_progress_is_read_from_the_ledger_also_after_a_resume_has_cut_it(tmp_path):
    each = progress(tmp_path, "fedavg")
    each.read()
    assert each.rounds == 0
    play(each, 3)
    with each.ledger.open("a") as file:
        file.write('{"round": 4, "acc')
    each.read()
    assert (each.rounds, each.accuracy) == (3, 0.5)
    each.ledger.write_text(json.dumps({"round": 1, "accuracy": {}}) + "\n")
    each.read()
    assert (each.rounds, each.accuracy) == (1, 0.5)


def test_a_pipe_gets_a_header_a_line_a_cell_and_no_control_codes(tmp_path):
    cells = [progress(tmp_path, "fedavg"), progress(tmp_path, "fedgen"), progress(tmp_path, "local", state="done")]
    play(cells[2], 10)
    stream = io.StringIO()
    shown = LineDisplay(stream=stream)
    shown.begin("skew", cells, 2)
    shown.started(cells[0].cell)
    play(cells[0], 10, 0.75)
    shown.ended(cells[0].cell, CellResult("done"))
    shown.started(cells[1].cell)
    shown.ended(cells[1].cell, CellResult("failed", 4, "run: round 1: no\n  useful reply"))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("compare skew   3 runs, 1 done before, 2 at a time")
    assert lines[1].startswith("done    2/3  fedavg, seed 1   round 10/10   accuracy 0.750   0:00")
    assert lines[2] == "failed  3/3  fedgen, seed 1   run: round 1: no useful reply"
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()
    assert shown.summary().startswith("2 of 3 runs, 1 failed in 0:0")


@pytest.mark.parametrize("height", [8, 12, 24, 60])
def test_the_table_is_never_taller_than_the_screen_and_shows_what_runs(tmp_path, height):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=height)
    shown = TableDisplay(console=console)
    cells = [progress(tmp_path, f"m{number}", setting="alpha 0.1") for number in range(30)]
    shown.begin("skew", cells, 2)
    for each in cells[20:22]:
        shown.started(each.cell)
        play(each, 5, 0.25)
    shown.tick()
    lines = console.render_lines(shown.render(height))
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    shown.close()
    assert len(lines) <= height
    assert "m20" in text
    assert "0.250" in text
    assert "5/10" in text
    assert ("more lines" in text) == (height < 37)


def test_what_is_left_is_shared_by_the_jobs(tmp_path):
    cells = [progress(tmp_path, "fedavg", seed) for seed in (1, 2, 3)]
    shown = progress_table.ProgressDisplay()
    shown.begin("skew", cells, 2)
    assert shown.left(cells) is None
    shown.started(cells[0].cell)
    cells[0].began = time.monotonic() - 5
    play(cells[0], 5)
    shown.tick()
    assert shown.left(cells) == pytest.approx(25 / 2, rel=0.1)  # a second a round, 25 rounds, 2 at a time
    assert shown.left(cells[:1]) == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("kind", [progress_table.ProgressDisplay, LineDisplay, TableDisplay])
def test_the_log_keeps_what_is_shown_also_where_nobody_looks(tmp_path, kind):
    stream = io.StringIO()
    of_kind = {LineDisplay: {"stream": stream}, TableDisplay: {"console": Console(file=stream)}}.get(kind, {})
    shown = kind(log=tmp_path / "log.txt", **of_kind)
    each = progress(tmp_path, "fedavg")
    shown.begin("skew", [each], 1)
    shown.started(each.cell)
    shown.ended(each.cell, CellResult("failed", 4, "no useful reply"))
    shown.close()
    shown.say("done    0 of 1 runs")
    lines = [line.partition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [line[:7] for line in lines] == ["fedkd 0", "failed ", "done   "]
    assert lines[1] == "failed  1/1  fedavg, seed 1   no useful reply"


def test_quiet_shows_nothing(capsys, tmp_path):
    from simulations.run.options import Options

    shown = progress_table.make(Options(quiet=True))
    shown.begin("skew", [progress(tmp_path, "fedavg")], 1)
    shown.say("a line")
    assert capsys.readouterr().out == ""
