"""`fedkd deploy server`: a SuperLink with TLS and known devices, in the foreground."""

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedkd.errors import DeployError
from simulations.deploy import certificates, processes, tls_check
from simulations.deploy.manifest import Deployment
from simulations.deploy.processes import Child

CONNECTION = "fedkd"  # of Flower's config.toml
START_SECONDS = 90.0
NODES = "nodes.json"  # device -> node id under which its key is registered

Say = Callable[[str], None]


@contextmanager
def serving(deployment: Deployment, say: Say, host: str | None = None) -> Iterator[Child]:
    """Run a SuperLink that answers and knows the devices' keys, for one block. Raises DeployError."""
    _check_certificate(deployment, say)
    bind = host or deployment.listen
    if processes.is_taken(bind, deployment.port):
        raise DeployError(
            f"port {deployment.port} is taken",
            where=f"{bind}:{deployment.port}",
            mend="end the program there (fedkd deploy stop DIR), or change port in deployment.yaml and in the kits",
        )
    command = _command(deployment, bind)
    say(f"flower  {shlex.join(command)}")
    write_connection(deployment)
    env = processes.environment(deployment.flwr_home)
    child = processes.start(command, deployment.logs / "server.log", env, marker=marker(deployment.folder))
    try:
        _until_ready(deployment, child)
        if deployment.tls:
            register(deployment, say)
        yield child
    finally:
        child.end()
        marker(deployment.folder).unlink(missing_ok=True)


def main(deployment: Deployment, say: Say, host: str | None = None) -> int:
    """Serve until Ctrl-C, SIGTERM or the end of the SuperLink."""
    with serving(deployment, say, host) as child:
        security = "NO TLS, no authentication: for tests on a network of your own"
        if deployment.tls:
            days = certificates.days_left(deployment.server_certificate, datetime.now(UTC))
            security = f"TLS ok, expires in {days} days"
        registered = f"{len(deployment.devices)} devices registered"
        say(f"superlink {deployment.superlink}  {security}   {registered}   Ctrl-C stops it")
        while child.ended() is None:
            time.sleep(0.5)
        raise DeployError(f"the SuperLink has ended with code {child.ended()}", where=str(child.log), mend=child.tail())


def marker(folder: Path) -> Path:
    """The file with the SuperLink's process id."""
    return folder / ".flwr" / "superlink.pid"


def write_connection(deployment: Deployment) -> None:
    """Flower's own configuration of how to reach this SuperLink."""
    deployment.flwr_home.mkdir(parents=True, exist_ok=True, mode=0o700)
    security = f"root-certificates = {json.dumps(str(deployment.ca))}" if deployment.tls else "insecure = true"
    address = f"address = {json.dumps(deployment.superlink)}"
    lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]", address, security, ""]
    (deployment.flwr_home / "config.toml").write_text("\n".join(lines), encoding="utf-8")


def reach(deployment: Deployment) -> None:
    """Raises DeployError if the SuperLink does not answer."""
    tls_check.check(deployment.address, deployment.port, deployment.ca if deployment.tls else None)


def flwr(deployment: Deployment, *arguments: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a command of Flower's for this deployment. Raises DeployError if it takes too long."""
    return processes.run(["flwr", *arguments], processes.environment(deployment.flwr_home), seconds)


def register(deployment: Deployment, say: Say) -> None:
    """Register the keys of new devices at the SuperLink. Raises DeployError."""
    known = nodes(deployment)
    for device in deployment.devices:
        if device.name in known:
            continue
        key = str(deployment.public_key(device.name))
        done = flwr(deployment, "supernode", "register", key, CONNECTION, "--format", "json")
        node = read_json(done.stdout).get("node-id")
        if not node:
            what = f"the key of {device.name} could not be registered: {(done.stderr or done.stdout).strip()[-300:]}"
            raise DeployError(what, where=str(deployment.folder))
        known[device.name] = str(node)
        (deployment.flwr_home / NODES).write_text(json.dumps(known, indent=1), encoding="utf-8")
        say(f"registered {device.name}  {device.fingerprint}")


def nodes(deployment: Deployment) -> dict[str, str]:
    """Device -> node id. Empty if the SuperLink's database does not exist."""
    path = deployment.flwr_home / NODES
    if not (deployment.flwr_home / "state.db").exists() or not path.exists():
        return {}
    return {str(name): str(node) for name, node in read_json(path.read_text(encoding="utf-8")).items()}


def _command(deployment: Deployment, bind: str) -> list[str]:
    command = ["flower-superlink", "--host", bind, "--port", str(deployment.port)]
    command += ["--database", str(deployment.flwr_home / "state.db"), "--disable-runtime-dependency-installation"]
    if not deployment.tls:
        return [*command, "--insecure"]
    command += ["--ssl-ca-certfile", str(deployment.ca), "--ssl-certfile", str(deployment.server_certificate)]
    return [*command, "--ssl-keyfile", str(deployment.server_key), "--enable-supernode-auth"]


def _check_certificate(deployment: Deployment, say: Say) -> None:
    if not deployment.tls:
        return
    certificate, now = deployment.server_certificate, datetime.now(UTC)
    for problem in certificates.inspect(certificate, deployment.ca, deployment.address, now, deployment.server_key):
        if not problem.is_warning:
            raise DeployError(problem.what, where=str(certificate), mend=problem.mend)
        say(f"warn   {problem.what}")


def _until_ready(deployment: Deployment, child: Child) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        if child.ended() is not None:
            raise DeployError("the SuperLink has ended at once", where=str(child.log), mend=child.tail())
        try:
            return reach(deployment)
        except DeployError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def read_json(text: str) -> dict[str, object]:
    """The JSON object in the output of one of Flower's programs; other lines may precede it."""
    start = text.find("{")
    try:
        value = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
