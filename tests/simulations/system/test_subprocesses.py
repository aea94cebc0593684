import os
import sys
import time

import pytest

from fedkd.errors import EngineError
from simulations.system import subprocesses

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc; elsewhere by hand")


def test_a_child_finds_our_packages_and_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not in the checkout, where `-c` would find them anyway
    assert subprocesses.python("-c", "import simulations, fedkd; print(fedkd.__version__)", timeout=60).strip()


def test_the_last_line_of_a_failing_child_is_told():
    with pytest.raises(EngineError, match="ValueError: no such thing"):
        subprocesses.python("-c", "raise ValueError('no such thing')", timeout=60)


def test_an_error_keeps_its_cause_and_its_advice_across_the_border():
    code = """
import sys
from fedkd.errors import EngineError
try:
    try:
        raise OSError("AF_UNIX path too long")
    except OSError as error:
        raise RuntimeError("no session") from error
except RuntimeError as error:
    try:
        raise EngineError(f"Ray does not start: {error}", mend="use engine=inline") from error
    finally:
        print("noise of a library", file=sys.stderr)
"""
    with pytest.raises(EngineError) as caught:
        subprocesses.python("-c", code, timeout=60)
    assert caught.value.what == (
        "EngineError: engine: Ray does not start: no session (from OSError: AF_UNIX path too long)"
    )
    assert caught.value.mend == "use engine=inline"


def test_what_a_library_says_after_the_exception_does_not_hide_it():
    err = f"{subprocesses._TRACEBACK}  File 'x', line 1\na.b.Bad: first\n       second\n[W] goodbye\n"
    assert subprocesses.last_words(err) == ("Bad: first", "second")


def test_a_child_that_says_nothing_is_told_by_its_code():
    with pytest.raises(EngineError, match="ended with code 7"):
        subprocesses.python("-c", "import sys; sys.exit(7)", timeout=60)


def test_out_of_time_the_child_and_its_own_children_are_killed(tmp_path):
    mark = tmp_path / "grandchild"
    code = f"""
import subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(mark)!r}, "w").write(str(other.pid))
time.sleep(60)
"""
    start = time.monotonic()
    with pytest.raises(EngineError, match="no answer within 3 s"):
        subprocesses.python("-c", code, timeout=3)
    assert time.monotonic() - start < 30
    if mark.exists():  # else the machine was too busy to come so far
        assert is_gone(int(mark.read_text()))


def is_gone(pid):
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as stat:  # a zombie that nobody has reaped counts as gone
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                return True
        time.sleep(0.05)
    return False
