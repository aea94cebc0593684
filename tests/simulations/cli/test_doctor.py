import json
import os
import tempfile

import pytest

from fedkd.errors import DataError
from simulations.cli import doctor
from simulations.run.options import Options
from simulations.system import scratch


@pytest.fixture
def looks(monkeypatch):
    """Replaces what `main` looks at: Ray takes seconds to start."""

    def give(*checks):
        monkeypatch.setattr(doctor, "look", lambda options: iter(checks))

    return give


FINE = doctor.Check("python", "ok", "3.13")
ODD = doctor.Check("flower", "warn", "not installed", "pip install flwr")
BAD = doctor.Check("disk", "fail", "0.0 GB free", "make room")


def test_a_warning_is_no_failure(looks, capsys):
    looks(FINE, ODD)
    assert doctor.main(Options()) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok    python         3.13",
        "warn  flower         not installed",
        "                     pip install flwr",
    ]


def test_a_failure_ends_with_code_3_and_the_rest_is_still_looked_at(looks, capsys):
    looks(BAD, FINE)
    assert doctor.main(Options(quiet=True)) == 3
    out = capsys.readouterr().out
    assert "fail  disk" in out
    assert "python" not in out


def test_json_is_one_object(looks, capsys):
    looks(FINE, BAD)
    assert doctor.main(Options(json=True)) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "fail"
    assert found["checks"][1] == {"name": "disk", "state": "fail", "what": "0.0 GB free", "mend": "make room"}


def test_a_check_that_breaks_is_itself_a_failure_and_the_others_go_on(monkeypatch):
    def broken():
        raise ImportError("libtorch.so: no such file")

    monkeypatch.setattr(doctor, "torch", broken)
    monkeypatch.setattr(doctor, "ray", lambda: FINE)
    found = list(doctor.look(Options()))
    (torch,) = [check for check in found if check.name == "torch"]
    assert torch.state == "fail"
    assert "libtorch.so" in torch.what
    assert found[-1] == FINE


def test_an_existing_folder_above_the_runs_is_looked_at(tmp_path):
    assert str(tmp_path) in doctor.write_rights(tmp_path / "not" / "there").what
    assert doctor.disk(tmp_path / "not").state in ("ok", "warn")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_one_may_not_write_in_is_a_failure(tmp_path):
    tmp_path.chmod(0o500)
    assert doctor.write_rights(tmp_path).state == "fail"


@pytest.mark.parametrize(("available", "state"), [(1e8, "fail"), (1e9, "warn"), (8e9, "ok")])
def test_memory_is_judged_by_what_is_available(monkeypatch, available, state):
    monkeypatch.setattr(doctor.machine, "available", lambda: available)
    assert doctor.memory().state == state


@pytest.mark.parametrize(("version", "state"), [("1.42.0", "ok"), ("1.43.0", "warn"), ("1.4.2", "warn")])
def test_another_flower_is_a_warning(monkeypatch, version, state):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: version)
    assert doctor.flower().state == state


def test_a_taken_port_is_a_warning_and_named(monkeypatch):
    with doctor.socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor, "FLOWER_PORTS", (port,))
        check = doctor.network()
    assert check.state == "warn"
    assert str(port) in check.what


def test_a_data_root_that_is_not_there_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path / "gone"))
    check = doctor.data()
    assert check.state == "warn"
    assert "digits" in check.what


def test_missing_data_sets_are_no_fault_and_a_damaged_one_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    assert doctor.data().state == "ok"
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte").write_bytes(b"damaged")
    check = doctor.data()
    assert check.state == "fail"
    assert "MNIST/raw" in check.what
    assert check.mend


def test_absence_is_told_from_damage():
    assert doctor.is_absence(DataError("MNIST/raw/x not found"))
    assert doctor.is_absence(DataError("no MNIST: the data root does not exist"))
    assert not doctor.is_absence(DataError("MNIST/raw/x is truncated or damaged"))


def test_a_ray_that_does_not_start_is_a_failure_with_its_reason(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(doctor, "_TRY_RAY", "raise RuntimeError('no sockets here')")
    check = doctor.ray()
    assert check.state == "fail"
    assert "no sockets here" in check.what


def test_the_cause_and_the_mend_of_a_ray_that_does_not_start_are_told(monkeypatch):
    pytest.importorskip("ray")
    code = "raise EngineError('Ray does not start: OSError: no room', mend='do this')"
    monkeypatch.setattr(doctor, "_TRY_RAY", f"from fedkd.errors import EngineError; {code}")
    check = doctor.ray()
    assert "Ray does not start: OSError: no room" in check.what
    assert check.mend == "do this"


def test_a_folder_for_temporary_files_that_is_too_long_for_sockets_is_told_and_another_named(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    check = doctor.temporary()
    assert check.state == "warn"
    assert str(long) in check.what
    assert "/tmp" in check.what
    monkeypatch.setattr(scratch, "_places", lambda first=None: [long])
    assert doctor.temporary().state == "fail"
    assert "TMPDIR" in doctor.temporary().mend


def test_here_the_libraries_work():
    assert doctor.python().state == doctor.torch().state == doctor.torchvision().state == "ok"
    assert doctor.gpu().state == "ok"
