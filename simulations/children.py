"""Other Python processes, for what must be measured or tried outside this one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from fedkd.errors import EngineError

_ROOT = Path(__file__).parent.parent  # where our packages lie, in a checkout and in an installed wheel


def python(*args: str, timeout: float) -> str:
    """Run this Python with `args`, with our packages in reach; gives its standard output.

    Raises EngineError with the last line of its standard error if it ends badly or takes longer than `timeout` seconds;
    then it and all its children are killed.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    child = subprocess.Popen(
        [sys.executable, *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own: killed as a whole
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException as error:  # out of time, or Ctrl-C here
        os.killpg(child.pid, signal.SIGKILL)  # it is not reaped yet, so the number still is its own
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EngineError(f"no answer within {timeout:g} s") from error
        raise
    if child.returncode:
        raise EngineError((err.strip().splitlines() or [f"ended with code {child.returncode}"])[-1])
    return out
