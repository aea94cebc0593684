"""`fedkd deploy client`: a SuperNode for one device, in the foreground."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fedkd.errors import DataError, DeployError
from simulations.deploy import processes, tls_check
from simulations.deploy.kit import Kit, split
from simulations.deploy.processes import Child

START_SECONDS = 90.0
RETRY_SECONDS = 90.0  # for 60 seconds a SuperLink counts a crashed device as online
PAUSE = 10.0  # seconds between attempts
_JOINED = "SuperNode ID"  # in Flower's log of a node that has joined
_REFUSALS = {  # Flower's exit codes
    "[code: 2001]": "the SuperLink requires a key, and this device sent none",
    "[code: 2004]": "the SuperLink does not accept this device's key",
}

Say = Callable[[str], None]


@contextmanager
def running(kit: Kit, data: Path | None, say: Say) -> Iterator[Child]:
    """Run a SuperNode that has joined, for one block. Raises DeployError and DataError."""
    path = find_data(kit, data)
    retry = RETRY_SECONDS if marker(kit).exists() else 0.0  # after a crash; an orderly end removes the marker
    child = launch(kit, path, say)
    try:
        child = joined(kit, path, child, say, retry)
        yield child
    finally:
        was_killed = (child.ended() or 0) < 0
        child.end()
        if not was_killed:  # the SuperLink knows that the device has left
            marker(kit).unlink(missing_ok=True)


def launch(kit: Kit, data: Path, say: Say) -> Child:
    """Start a SuperNode. Raises DeployError for known problems that would keep it from joining."""
    for problem in kit.problems() if kit.tls else ():
        raise DeployError(problem.what, where=problem.where, mend=problem.mend)
    _reach(kit)
    if processes.read_marker(marker(kit)) is not None:
        mend = "end it with fedkd deploy stop, or wait for it"
        raise DeployError(f"{kit.name} already runs on this machine", where=str(kit.folder), mend=mend)
    return _start(kit, data, say)


def main(kit: Kit, data: Path | None, say: Say) -> int:
    """Take part until Ctrl-C, SIGTERM or the end of the SuperNode."""
    with running(kit, data, say) as child:
        say(f"{kit.name} has joined {kit.superlink}  {'TLS ok' if kit.tls else 'NO TLS'}   Ctrl-C stops it")
        shown, watch = 0, tls_check.Watch(partial(_reach, kit), say)
        while child.ended() is None:
            shown = _notify(kit, child, shown, say)
            watch.look()
            time.sleep(0.5)
        _notify(kit, child, shown, say)
        raise _explain(kit, child)


def _reach(kit: Kit) -> None:
    tls_check.check(*split(kit.superlink), kit.ca)


def marker(kit: Kit) -> Path:
    """The file with the SuperNode's process id."""
    return kit.state / "supernode.pid"


def command(kit: Kit, data: Path) -> list[str]:
    """Flower's own command for this device."""
    security = ["--root-certificates", str(kit.ca), "--auth-supernode-private-key", str(kit.key)]
    port = kit.runtime_port if not processes.is_taken("127.0.0.1", kit.runtime_port) else processes.free_port()
    facts = {"partition-id": kit.client, "num-partitions": kit.clients, "kit": str(kit.folder), "data": str(data)}
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in facts.items())
    link = ["flower-supernode", "--superlink", kit.superlink, *(security if kit.tls else ["--insecure"])]
    return [*link, "--port", str(port), "--node-config", config]


def _start(kit: Kit, data: Path, say: Say) -> Child:
    kit.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    supernode = command(kit, data)
    say(f"flower  {shlex.join(supernode)}")
    env = processes.environment(kit.state / "flower")
    return processes.start(supernode, kit.state / "supernode.log", env, marker=marker(kit))


def joined(kit: Kit, data: Path, child: Child, say: Say, retry: float = 0.0) -> Child:
    """Wait until the SuperNode has joined; for `retry` seconds, start another one after a refusal."""
    end, give_up = time.monotonic() + START_SECONDS, time.monotonic() + retry
    while time.monotonic() < end:
        if child.ended() is None and any(_JOINED in line for line in child.output()):
            return child
        if child.ended() is not None:
            error = _explain(kit, child)
            if time.monotonic() > give_up:
                raise error
            say(f"warn   {error.what}; after a crash the device counts as online for a minute; trying again")
            time.sleep(PAUSE)
            child = _start(kit, data, say)
            end = time.monotonic() + START_SECONDS
        time.sleep(0.2)
    child.end()
    raise DeployError(f"{kit.name} has not joined within {START_SECONDS:g} s", where=str(child.log), mend=child.tail())


def _explain(kit: Kit, child: Child) -> DeployError:
    text = "\n".join(child.output())
    for code, what in _REFUSALS.items():
        if code in text:
            mend = f"check that {kit.name}'s key is registered (fedkd deploy server DIR does it) and that no other "
            mend += "device uses this kit; after a crash wait a minute"
            return DeployError(what, where=f"{kit.name} at {kit.superlink}", mend=mend)
    return DeployError(f"the SuperNode has ended with code {child.ended()}", where=str(child.log), mend=child.tail())


def _notify(kit: Kit, child: Child, shown: int, say: Say) -> int:
    """Show new lines of the device's own code; Flower's lines are only in the log. Returns the number of lines seen."""
    lines = child.output()
    for line in lines[shown:]:
        if line.startswith(f"{kit.name}  "):
            say(line)
    return len(lines)


def find_data(kit: Kit, data: Path | None) -> Path:
    """The path of a device's data, which are not read yet. Raises DataError."""
    path = data or kit.data
    if path is None:
        raise DataError(f"{kit.name} has no data", where=str(kit.folder), mend="give --data PATH, or data in node.yaml")
    path = path.expanduser().absolute()
    try:
        is_empty = path.is_dir() and not any(path.iterdir())
        if path.is_file():
            path.open("rb").close()
    except OSError as error:
        what, mend = f"the data cannot be read: {error.strerror}", "change the permissions"
        raise DataError(what, where=str(path), mend=mend) from None
    if not path.exists():
        raise DataError("there is no such file or folder", where=str(path), mend="give --data PATH")
    if is_empty:
        raise DataError("the folder is empty", where=str(path), mend="add one folder of images per class, or data.npz")
    return path
