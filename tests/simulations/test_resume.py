"""kill -9 in any round, resume: the ledger is byte for byte that of a run that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pilots import QUIET, resume

from fedkd.configuration import compose
from simulations.run import run_folder, runs

# Everything a resume could lose: entries that stay with clients, a generator with its optimiser, statistics, momentum.
WORDS = [
    "data=digits",
    "students=fedgen-cnn",
    "students.statistics=local",
    "strategy=fedgen",
    "strategy.share=head",
    "partition.alpha=0.5",
    "clients=5",
    "clients_per_round=3",
    "train.steps=2",
    "evaluate.probe=8",
    "strategy.generator_steps=2",
    "rounds=14",
    "checkpoint.every=3",
    "engine=inline",
]
LEDGER = ("metrics.jsonl", "clients.jsonl")
ROOT = Path(__file__).parents[2]


@pytest.mark.deployment  # every day: enumerations/test_samples.py, where the run is forked
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    """In round 6 or soon after, between two commits; enumerations/interrupted.py takes every place."""
    words = [*WORDS, "seed=1"]
    play_and_kill(words, tmp_path, 5)
    place = tmp_path / "killed"
    assert run_folder.state(place) == "stopped"
    assert b'"round":14,' not in (place / "metrics.jsonl").read_bytes()

    runs.start(compose.resolve(words), runs=tmp_path, name="whole", options=QUIET)
    found = resume(tmp_path, place)
    assert found["status"] == "done"
    for name in LEDGER:
        assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (place / "timings.jsonl").read_bytes().count(b"\n") == 14


def play_and_kill(words, runs_folder, rows):
    """Start a run in another process; kill it once it has recorded so many rounds: in the middle of the next."""
    command = [
        sys.executable,
        "-m",
        "simulations.cli",
        "run",
        *words,
        "--runs",
        str(runs_folder),
        "--name",
        "killed",
        "--quiet",
    ]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        path = runs_folder / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not path.exists() or path.read_bytes().count(b"\n") < rows:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)


def test_a_signal_saves_and_stops(tmp_path):
    """A request to terminate; what Ctrl-C does, test_interrupts.py tries in process."""
    script = (
        "import sys; from pathlib import Path\n"
        "from fedkd.configuration import compose; from simulations.run import runs\n"
        "from simulations.run.options import Options\n"
        "found = runs.start(compose.resolve(sys.argv[2:]), runs=Path(sys.argv[1]), name='pilot', options=Options())\n"
        "sys.exit(runs.exit_code(found))"
    )
    command = [sys.executable, "-c", script, str(tmp_path), *WORDS, "rounds=2000"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        while not (line := process.stdout.readline()).startswith("round 2/"):
            assert line, "the run ended before it could be stopped"
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 143
    assert "everything is saved.  fedkd resume" in rest
    assert run_folder.state(tmp_path / "pilot") == "stopped"
    played = (tmp_path / "pilot" / "metrics.jsonl").read_bytes().count(b"\n")
    assert (tmp_path / "pilot" / "checkpoints" / f"round-{played:04d}" / "manifest.json").exists()
