"""`fedkd deploy server`: a SuperLink with TLS and known devices, in the foreground."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedkd.errors import DeployError
from simulations.deploy import certificates, processes, tls_check
from simulations.deploy.plan import Deployment
from simulations.deploy.processes import Child

CONNECTION = "fedkd"  # of Flower's config.toml
START_SECONDS = 90.0
NODES = "nodes.json"  # device -> node id that its key is registered as

Say = Callable[[str], None]


@contextmanager
def serving(plan: Deployment, say: Say, host: str | None = None) -> Iterator[Child]:
    """A SuperLink that answers and knows the devices' keys; ends with the block. Raises DeployError."""
    _check_certificate(plan, say)
    bind = host or plan.listen
    if processes.is_taken(bind, plan.port):
        raise DeployError(
            f"port {plan.port} is taken",
            where=f"{bind}:{plan.port}",
            mend="end what listens there (fedkd deploy stop DIR), or change port in deployment.yaml and in the kits",
        )
    command = _command(plan, bind)
    say(f"flower  {shlex.join(command)}")
    env = processes.environment(plan.flwr_home)
    write_connection(plan)
    child = processes.start(command, plan.logs / "server.log", env, marker=marker(plan.folder))
    try:
        _until_ready(plan, child)
        if plan.tls:
            register(plan, say)
        yield child
    finally:
        child.end()
        marker(plan.folder).unlink(missing_ok=True)


def main(plan: Deployment, say: Say, host: str | None = None) -> int:
    """Serve until Ctrl-C, SIGTERM or the end of the SuperLink."""
    with serving(plan, say, host) as child:
        safe = "TLS ok" if plan.tls else "NO TLS, no authentication: for tests on a network of your own"
        if plan.tls:
            safe += f", expires in {certificates.days_left(plan.server_certificate, datetime.now(UTC))} days"
        say(f"superlink {plan.superlink}  {safe}   {len(plan.devices)} devices registered   Ctrl-C stops it")
        while child.ended() is None:
            time.sleep(0.5)
        raise DeployError(f"the SuperLink has ended with code {child.ended()}", where=str(child.log), mend=child.tail())


def marker(folder: Path) -> Path:
    """The file with the SuperLink's process id."""
    return folder / ".flwr" / "superlink.pid"


def write_connection(plan: Deployment) -> None:
    """Flower's own configuration of how to reach this SuperLink."""
    plan.flwr_home.mkdir(parents=True, exist_ok=True, mode=0o700)
    safe = f"root-certificates = {json.dumps(str(plan.ca))}" if plan.tls else "insecure = true"
    address = json.dumps(plan.superlink)
    text = f"[superlink]\ndefault = {json.dumps(CONNECTION)}\n\n[superlink.{CONNECTION}]\naddress = {address}\n{safe}\n"
    (plan.flwr_home / "config.toml").write_text(text, encoding="utf-8")


def register(plan: Deployment, say: Say) -> None:
    """Register the keys of new devices at the SuperLink. Raises DeployError."""
    env = processes.environment(plan.flwr_home)
    known = nodes(plan)
    for device in plan.devices:
        if device.name in known:
            continue
        command = ["flwr", "supernode", "register", str(plan.public_key(device.name)), CONNECTION, "--format", "json"]
        done = processes.run(command, env)
        found = read_json(done.stdout)
        if not found.get("node-id"):
            reason = (done.stderr or done.stdout).strip()[-300:]
            raise DeployError(f"the key of {device.name} could not be registered: {reason}", where=str(plan.folder))
        known[device.name] = str(found["node-id"])
        (plan.flwr_home / NODES).write_text(json.dumps(known, indent=1), encoding="utf-8")
        say(f"registered {device.name}  {device.fingerprint}")


def nodes(plan: Deployment) -> dict[str, str]:
    """Device -> node id. Empty if the SuperLink's database does not exist."""
    if not (plan.flwr_home / "state.db").exists():
        return {}
    found = read_json((plan.flwr_home / NODES).read_text(encoding="utf-8")) if (plan.flwr_home / NODES).exists() else {}
    return {str(name): str(node) for name, node in found.items()}


def _command(plan: Deployment, bind: str) -> list[str]:
    command = ["flower-superlink", "--host", bind, "--port", str(plan.port)]
    command += ["--database", str(plan.flwr_home / "state.db"), "--disable-runtime-dependency-installation"]
    if not plan.tls:
        return [*command, "--insecure"]
    return [
        *command,
        "--ssl-ca-certfile",
        str(plan.ca),
        "--ssl-certfile",
        str(plan.server_certificate),
        "--ssl-keyfile",
        str(plan.server_key),
        "--enable-supernode-auth",
    ]


def _check_certificate(plan: Deployment, say: Say) -> None:
    if not plan.tls:
        return
    now = datetime.now(UTC)
    for problem in certificates.inspect(plan.server_certificate, plan.ca, plan.address, now, plan.server_key):
        if problem.is_warning:
            say(f"warn   {problem.what}")
        else:
            raise DeployError(problem.what, where=str(plan.server_certificate), mend=problem.mend)


def _until_ready(plan: Deployment, child: Child) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        if child.ended() is not None:
            raise DeployError("the SuperLink has ended at once", where=str(child.log), mend=child.tail())
        try:
            return tls_check.check(plan.address, plan.port, plan.ca if plan.tls else None)
        except DeployError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def read_json(text: str) -> dict[str, object]:
    """The JSON object in the output of one of Flower's programs, which may have other lines before it."""
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}
