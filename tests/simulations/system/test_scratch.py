import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fedkd.errors import EngineError
from simulations.engines import ray_session
from simulations.system import scratch

_KILLED = """
import os
from simulations.system import scratch
held = scratch.folder("test")
print(held.__enter__(), flush=True)
os.kill(os.getpid(), 9)
"""
_ROOT = Path(scratch.__file__).parents[2]


@pytest.fixture
def own(monkeypatch):
    """The user's folder for temporary files: a short one."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def killed(own):
    """The folder of a process that was killed while it held it."""
    env = os.environ | {"TMPDIR": str(own), "PYTHONPATH": str(_ROOT)}
    done = subprocess.run([sys.executable, "-c", _KILLED], env=env, capture_output=True, text=True, check=False)
    return Path(done.stdout.strip())


def test_a_folder_is_private_and_gone_at_the_end(own):
    with scratch.folder("test") as folder:
        assert folder.parent == own
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(own.iterdir()) == []


def test_the_next_one_removes_what_a_killed_process_left_and_nothing_else(own):
    left = killed(own)
    (left / "deep").mkdir()
    strange = own / "fedkd-test-strange"  # without a lock: not ours, or not locked yet
    strange.mkdir()
    with scratch.folder("test") as first, scratch.folder("other"):
        assert not left.exists()
        with scratch.folder("test"):
            assert first.is_dir(), "its owner lives"
    assert list(own.iterdir()) == [strange]


def test_a_socket_goes_below_the_users_folder_where_it_fits(own):
    spare = scratch.SOCKET_BYTES - len(os.fsencode(own)) - 1
    assert scratch.place("x" * spare) == own
    assert scratch.place("x" * (spare + 1)) != own


def test_paths_are_counted_in_bytes(own, monkeypatch):
    wide = own / ("ö" * 10)
    wide.mkdir()
    monkeypatch.setattr(scratch, "_places", lambda first=None: [wide])
    spare = scratch.SOCKET_BYTES - len(str(own)) - 22
    assert scratch.place("x" * spare) == wide
    with pytest.raises(EngineError, match="at most"):
        scratch.place("x" * (spare + 1))


def test_a_folder_is_made_elsewhere_and_that_is_said_if_its_sockets_do_not_fit_below_the_users(own, monkeypatch):
    long = own / ("x" * 60)
    long.mkdir()
    assert scratch.detour("ray", ray_session.SOCKET) == ""
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert str(long) in scratch.detour("ray", ray_session.SOCKET)
    with scratch.folder("ray", ray_session.SOCKET) as folder:
        assert len(os.fsencode(folder / ray_session.SOCKET)) <= scratch.SOCKET_BYTES
        assert long not in folder.parents


def test_a_place_that_is_asked_for_comes_first(own, tmp_path):
    assert scratch.place("x", first=str(own / "gone")) == own
    (own / "run").mkdir()
    assert scratch.place("x", first=str(own / "run")) == own / "run"
