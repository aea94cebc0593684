import os
import subprocess
import sys
from pathlib import Path

from simulations.system import locks

_ROOT = Path(locks.__file__).parents[2]
_HOLD = """
import sys, time
from pathlib import Path
from simulations.system import locks
lock = locks.take(Path(sys.argv[1]), b"words")
print(lock is not None, flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_free_after_its_release(tmp_path):
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    assert not path.exists(), "asking makes nothing"
    lock = locks.take(path, b'{"pid": 1}')
    assert locks.take(path) is None
    assert locks.is_held(path)
    assert locks.text(path) == ' {"pid": 1}', "who asked has changed nothing"
    lock.release()
    lock.release()
    assert not locks.is_held(path)


def test_new_words_replace_the_old_ones(tmp_path):
    path = tmp_path / "lock"
    path.write_text("what an earlier holder wrote, and more of it")
    locks.take(path, b"mine").release()
    assert locks.text(path) == " mine"


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path):
    path, env = tmp_path / "lock", os.environ | {"PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().strip() == "True"
        assert locks.is_held(path)
        holder.kill()
    assert not locks.is_held(path)
