"""What is shown: lines that stay within their budget, a panel that tells the truth, nothing on stdout with --json."""

import dataclasses
import io
import subprocess
import sys

import pytest

from simulations.run import console_text, progress
from simulations.run.console_text import Head, History
from simulations.run.options import Options
from simulations.run.progress import LineScreen, Panel, Screen

HEAD = Head(
    run="1124-1830-fedgen-a3f9",
    strategy="fedgen/paper",
    data="fashion-mnist",
    partition="dirichlet(0.1)",
    clients=100,
    per_round=10,
    rounds=50,
    folder="runs/1124-1830-fedgen-a3f9",
    engine="ray x 4, because two cores are faster than one",
)


def row(number, accuracy=0.7, **more):
    return {
        "round": number,
        "cohort": [0, 1],
        "clients": {"ok": 9, "failed": 1, "late": 0, "rejected": 0},
        "accuracy": {"global": accuracy, "clients": {"mean": 0.6, "worst_decile": 0.4, "pooled": 0.65}},
        "terms": {"ce": 1.0},
        "server": {"fidelity": 0.69},
        "drift": {"weights": 0.2, "function": 0.3},
        "bytes": {"down": {"weights": 3_000_000, "generator": 500_000}, "up": {"weights": 2_000_000}},
        **more,
    }


def summary():
    return {
        "rounds": 50,
        "accuracy": {"last": 0.7, "last10": 0.69, "top5": 0.71, "best": 0.72},
        "accuracy_of": "global",
        "clients": {"mean": 0.6, "worst_decile": 0.4},
        "bytes": {"up": 2e6, "down": 3.5e6},
        "replies": {"ok": 90, "late": 0, "failed": 2, "rejected": 1},
        "seconds": {"total": 91.2},
    }


def test_a_pipe_gets_at_most_ten_lines_more_than_rounds():
    stream = io.StringIO()
    screen = LineScreen(stream)
    for text in ("loading PyTorch", "loading digits", "starting the engine"):
        screen.phase(text)
    screen.begin(HEAD, [])
    for number in range(1, 51):
        screen.round(row(number), 0.5, "client 3 failed in round 1: out of memory")
    screen.end(console_text.closing(summary(), HEAD))
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 50 + 10
    assert sum(line.startswith("round ") for line in lines) == 50
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()


def test_the_last_lines_hold_the_figures_and_the_next_command():
    text = "\n".join(console_text.closing(summary(), HEAD))
    for part in ("0.700", "mean 0.600", "worst tenth 0.400", "up 2.0 MB", "down 3.5 MB", "1:31", "3 client failures"):
        assert part in text
    assert "tensorboard --logdir runs" in text
    assert "fedkd run runs/1124-1830-fedgen-a3f9/config.yaml strategy=fedavg" in text


def test_a_strategy_as_conf_has_it_is_compared_over_seeds():
    text = "\n".join(console_text.closing(summary(), dataclasses.replace(HEAD, option="fedgen")))
    assert "fedkd compare runs/1124-1830-fedgen-a3f9/config.yaml strategy=fedavg,fedgen seed=1..8" in text


def test_fedavg_is_not_told_to_compare_with_itself():
    assert "next" not in "\n".join(console_text.closing(summary(), dataclasses.replace(HEAD, strategy="fedavg")))


def test_a_run_without_evaluation_still_ends_with_its_traffic():
    lines = console_text.closing({**summary(), "accuracy": {}, "clients": {}}, HEAD)
    assert any("traffic" in line for line in lines)


def test_the_panel_adds_up_all_rounds():
    told = History()
    for number in range(1, 18):
        told.add(row(number, number / 20))
        told.seconds.append(2.0)
    lines = console_text.panel(HEAD, told, running=0.5)
    text = "\n".join(lines)
    assert len(lines) <= 12
    assert "round 17/50" in text
    assert "34%" in text
    assert "2.0 s/round" in text
    assert "left 1:06" in text  # 33 rounds of 2 s, less the half second of this one
    assert "up 34.0 MB   down 59.5 MB" in text
    assert "weights 85.0   generator 8.5" in text
    assert "ok 153   late 0   failed 17" in text
    assert "global 0.850" in text
    assert "fidelity 0.69" in text
    assert "ray x 4" in text
    assert "because" not in text


def test_a_long_round_shows_what_it_does_now():
    told = History()
    assert " now        clients   3 of 10 done   12 s" in console_text.panel(
        HEAD, told, 12, console_text.doing("clients", 3, 10, 12.2)
    )
    assert " now        server   238 s" in console_text.panel(HEAD, told, 240, console_text.doing("server", 0, 0, 238))


def test_short_rounds_do_not_flicker():
    told = History(seconds=[0.3])
    assert "now" not in "\n".join(console_text.panel(HEAD, told, 0.1, console_text.doing("clients", 3, 10, 0.1)))
    told.seconds.append(30.0)  # rounds are long: the line stays from one to the next
    assert " now        clients   3 of 10 done   0 s" in console_text.panel(
        HEAD, told, 0.1, console_text.doing("clients", 3, 10, 0.1)
    )


def test_the_seconds_of_a_phase_are_its_own(monkeypatch):
    from rich.console import Console

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    screen = Panel(Console(file=io.StringIO()))
    screen.begin(HEAD, [])
    for now[0], doing in [(1.0, ("clients", 0, 2)), (9.0, ("clients", 1, 2))]:
        screen.progress(*doing)
    now[0] = 12.0
    assert "now        clients   1 of 2 done   11 s" in screen._render().plain
    screen.progress("server", 0, 0)
    now[0] = 250.0
    assert "now        server   238 s" in screen._render().plain


def test_a_pipe_hears_nothing_of_what_a_round_does():
    stream = io.StringIO()
    screen = LineScreen(stream)
    screen.begin(HEAD, [])
    before = stream.getvalue()
    screen.progress("server", 0, 0)
    assert stream.getvalue() == before


def test_rounds_without_evaluation_keep_the_last_accuracy():
    told = History()
    told.add(row(1))
    told.add(row(2, accuracy=None) | {"accuracy": {}})
    assert "global 0.700" in "\n".join(console_text.panel(HEAD, told, 0))
    assert told.curves["global"] == [0.7]


@pytest.mark.parametrize(
    ("values", "curve"), [([], ""), ([0.5], "▁"), ([0.5, 0.5], "▁▁"), ([0, 1], "▁█"), ([0, 0.5, 1], "▁▅█")]
)
def test_a_sparkline_spans_its_values(values, curve):
    assert console_text.sparkline(values) == curve


def test_a_long_sparkline_ends_with_the_newest_value():
    curve = console_text.sparkline([0.0] * 99 + [1.0], 12)
    assert len(curve) == 12
    assert curve.endswith("█")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (91, "1:31"), (7509, "2:05:09")])
def test_a_clock_is_read_at_a_glance(seconds, text):
    assert console_text.clock(seconds) == text


def test_the_panel_draws_on_a_terminal_and_gives_it_back():
    from rich.console import Console

    stream = io.StringIO()
    screen = Panel(Console(file=stream, force_terminal=True, width=120, height=40, legacy_windows=False))
    screen.phase("loading PyTorch")
    screen.begin(HEAD, [row(1)])
    screen.round(row(2), 1.0, "")
    screen.end(["done   2 rounds [not markup]"])
    shown = stream.getvalue()
    assert "loading PyTorch" in shown
    assert "round 2/50" in shown
    assert "[not markup]" in shown
    assert shown.rstrip().count("\x1b[?25h") == 1  # the cursor is visible again


def test_an_error_while_starting_begins_on_a_line_of_its_own():
    stream = io.StringIO()
    with LineScreen(stream) as screen:
        screen.phase("loading PyTorch")
        screen.phase("loading PyTorch")  # said by the command line and again by the driver
    assert stream.getvalue() == "starting: loading PyTorch\n"


@pytest.mark.parametrize(
    ("options", "kind", "stream"),
    [
        (Options(), LineScreen, "stdout"),
        (Options(json=True), LineScreen, "stderr"),
        (Options(quiet=True), Screen, "stdout"),
        (Options(quiet=True, json=True), Screen, None),
    ],
)
def test_json_keeps_stdout_free_and_quiet_shows_the_result_alone(options, kind, stream, capsys):
    screen = progress.make(options)
    assert type(screen) is kind
    screen.phase("loading")
    screen.begin(HEAD, [])
    screen.round(row(1), 0.1, "")
    screen.end(["done", "next   do more"])
    captured = capsys.readouterr()
    assert (captured.out == "done\n") == (options == Options(quiet=True))
    assert bool(captured.out) == (stream == "stdout")
    assert bool(captured.err) == (stream == "stderr")


def test_the_first_words_need_no_torch():
    script = (
        "import sys; from simulations.run import runs, progress\n"
        "from simulations.run.options import Options\n"
        "progress.make(Options()).phase('loading')\n"
        "sys.exit(sorted({'torch', 'ray', 'tensorboard', 'numpy'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
