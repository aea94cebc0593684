import resource

import pytest

from fedkd.config import RunConfig
from fedkd.engine import Failure
from fedkd.errors import ConfigError
from simulations.cli import ending
from simulations.run import advice
from simulations.system import machine


@pytest.fixture
def little(monkeypatch):
    """`ulimit -v` of two gigabytes, without harm to this process."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2 * 10**9, 2 * 10**9))


def test_the_peak_is_some_megabytes():
    assert 1e7 < machine.peak() < 1e11


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_too_little_memory_is_no_bug_and_its_limit_is_named(little, error, capsys):
    assert ending.explain(error, []) == 3
    shown = capsys.readouterr().err
    assert "bug" not in shown
    assert type(error).__name__ in shown
    assert "ulimit -v allows 2000 MB" in shown
    assert "train.batch" in shown
    assert ending.as_json(error, 3, [])["topic"] == "memory"


def test_other_errors_stay_what_they_are():
    for error in (ValueError("x"), ConfigError("not enough memory"), KeyboardInterrupt()):
        assert machine.explained(error) is error


def test_a_control_group_is_named_with_its_file(monkeypatch, tmp_path):
    for name, text in {"memory.max": "300000000", "memory.current": "100000000"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_group_folders", lambda: [(tmp_path, "memory.max", "memory.current")])
    assert f"{tmp_path / 'memory.max'} allows 300 MB" in machine.limits()
    assert machine.available() <= 200_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert "allows" not in machine.limits().partition("ulimit")[0]


def test_a_run_whose_clients_lack_memory_is_told_so(little, tmp_path):
    failure = Failure(client=0, round=1, what="MemoryError", cause="raised")
    found = advice.after([failure], RunConfig(), tmp_path, on_devices=False)
    assert "too little memory" in found.text
    assert "ulimit -v allows 2000 MB" in found.text
    assert f"fedkd resume {tmp_path}" in found.text
