"""A system without the modules of Unix, which is what Windows is: `doctor` and the other verbs say the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd.config import EngineConfig
from fedkd.errors import DeployError, EngineError
from simulations.cli import doctor, main
from simulations.engines import choose, ray_session
from simulations.system import operating_system

_ROOT = Path(operating_system.__file__).parents[2]
# Libraries have ways of their own there: only our packages find nothing.
_ELSEWHERE = """
import builtins, importlib.util, multiprocessing, signal, sys
UNIX, OURS = ("fcntl", "resource", "pwd"), ("fedkd", "strategies", "clients", "simulations")
load, find = builtins.__import__, importlib.util.find_spec
def guarded(name, globals=None, *more, **named):
    if name in UNIX and (globals or {}).get("__name__", "").split(".")[0] in OURS:
        raise ModuleNotFoundError(f"No module named {name!r}")
    return load(name, globals, *more, **named)
builtins.__import__ = guarded
importlib.util.find_spec = lambda name, *more: None if name in UNIX else find(name, *more)
del signal.pthread_sigmask
multiprocessing.get_all_start_methods = lambda: ["spawn"]
from simulations.cli import main as cli
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def elsewhere(monkeypatch):
    """This process, on a system without the modules of Unix."""
    for name in operating_system._NEEDED:
        monkeypatch.setitem(sys.modules, name, None)


def played(tmp_path, *words):
    script = tmp_path / "elsewhere.py"
    script.write_text(_ELSEWHERE)
    command = [sys.executable, str(script), *words]
    env = os.environ | {"PYTHONPATH": str(_ROOT)}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


def test_without_the_modules_of_unix_runs_and_comparisons_work(tmp_path):
    words = ["strategy=fedavg", "seed=1,2", "clients=2", "students=mlp", "rounds=1", "train.steps=1"]
    done = played(tmp_path, "compare", *words, "--jobs", "2", "--name", "here")
    assert done.returncode == 0, done.stderr
    ends = [json.loads(place.read_text()) for place in (tmp_path / "runs/here").glob("runs/*/summary.json")]
    assert [end["status"] for end in ends] == ["done", "done"]


def test_what_such_a_system_cannot_do_is_one_error_with_a_mend(elsewhere, site, capsys):
    with pytest.raises(EngineError, match=r"engine=ray needs Linux or macOS: .* has no fcntl, resource") as caught:
        choose.make(EngineConfig(name="ray"), site, estimate=lambda: 0.0, notify=print)
    assert "WSL" in caught.value.mend
    assert main.main(["deploy", "init", "fl", "--address", "localhost", "--devices", "2"]) == DeployError.code
    assert "fedkd deploy needs Linux or macOS" in capsys.readouterr().err


def test_doctor_agrees(elsewhere):
    check = doctor.system()
    assert check.state == "warn"
    assert operating_system.WITHOUT in check.what
    assert doctor.ray().state == "ok"


def test_auto_takes_one_process_there(elsewhere, monkeypatch):
    monkeypatch.setattr(ray_session, "num_cores", lambda: 2)
    name, why = choose.choose(EngineConfig(), lambda: 1e6)
    assert name == "inline"
    assert "needs Linux or macOS" in why


def test_here_nothing_is_missing():
    assert operating_system.missing() == ""
