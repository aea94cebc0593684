"""README.md of a deployment: its commands in order, with the paths of this folder."""

from collections.abc import Iterator

from simulations.deploy import files
from simulations.deploy.plan import FILE, Deployment
from simulations.deploy.services import RESTART_SECONDS, UNIT_HOME, variable

_COMMANDS = (
    ("scp -rp devices/{first} {first}:", "1. each kit to its device; on this machine it may stay where it is"),
    ("fedkd deploy server .", "2. the server, in the foreground; or server/start.sh"),
    ("fedkd deploy client {first} --data PATH", "3. on the device, beside its kit; or {first}/start.sh --data PATH"),
    ("fedkd deploy run .", "4. a run; words may follow: fedkd deploy run . rounds=20 seed=2"),
    ("fedkd deploy status .", "5. who is there, what the run does, when the certificate ends"),
    ("fedkd deploy stop .", "6. end the run and the server; devices keep what they know"),
)

_KITS = """\
## Kits
`devices/NAME` is all that a device needs. `node.yaml` in it belongs to the device's owner: which students and
strategies may be trained there, how much memory, where the data are. Nobody can change it from afar. Images and
labels stay there.

A kit holds the key by which the server knows its device: whoever has `node_key` is this device. Copy it over a channel
you trust, and delete `devices/NAME/node_key` here when it has arrived; the server needs only `server/keys/NAME.pub`.
"""

_SECRETS = """\
## Secrets
| file | whoever has it can | who needs it |
|---|---|---|
{rows}

`.gitignore` names what may be committed; these files are not among it. Their rights are 0600.
"""

_TLS = """\
## Certificates
The server's certificate holds for 365 days. `fedkd deploy renew .` makes the next one; then start the server again.
Kits stay as they are. `renew` needs `ca/ca.key`; nothing else does, so it may be kept on another machine.
"""

_PLAIN = """\
## No TLS
This deployment was made with `--insecure`: everybody on the way can read and change what travels, and anybody can join.
Use it on one machine only.
"""

_SERVICES = """\
## At each start of the machine
`server/fedkd-superlink.service` and `devices/NAME/fedkd-NAME.service` are units for systemd; the latter expects its kit
in `{home}/NAME` and `data` in its `node.yaml`. After a crash they wait {seconds} seconds: Flower refuses a node for 60,
because it still counts as online.

## Containers
```
pip wheel --no-deps --wheel-dir wheel PATH_OF_FEDKD
docker compose up --build --detach           # or podman-compose; data of a device: {variable}_DATA=PATH
```
Limits stand in `compose.yaml`. Containers use the network of the host.

## More devices
`fedkd deploy add . --devices NAME` makes further kits. Nobody gets another number; `clients` in the `node.yaml` of the
older kits rises.
"""


def readme(deployment: Deployment) -> files.Content:
    return files.text("\n".join(_parts(deployment)))


def _parts(deployment: Deployment) -> Iterator[str]:
    first = deployment.devices[0].name
    yield f"# Deployment of fedkd: {len(deployment.devices)} devices, server {deployment.superlink}\n"
    yield "Commands are for a shell in this folder, with fedkd installed (`fedkd doctor`).\n```"
    yield from _commands(first)
    yield "```\n"
    yield _table(deployment)
    yield _KITS
    yield _SECRETS.format(rows="\n".join(_secrets(deployment)))
    yield _TLS if deployment.tls else _PLAIN
    yield _SERVICES.format(home=UNIT_HOME, seconds=RESTART_SECONDS, variable=variable(first))


def _commands(first: str) -> Iterator[str]:
    rows = [(command.format(first=first), about.format(first=first)) for command, about in _COMMANDS]
    width = max(len(command) for command, _ in rows)
    yield from (f"{command:<{width}}  # {about}" for command, about in rows)


def _table(deployment: Deployment) -> str:
    rows = ["## Devices", f"From `{FILE}`, where `words`, the configuration of runs, may be edited.", ""]
    rows += ["| device | client | student | key |", "|---|---|---|---|"]
    rows += [f"| {d.name} | {d.client} | {d.student or 'as the run'} | {d.fingerprint} |" for d in deployment.devices]
    return "\n".join(rows) + "\n"


def _secrets(deployment: Deployment) -> Iterator[str]:
    if deployment.tls:
        yield "| `ca/ca.key` | pretend to be the server, for ten years | `fedkd deploy renew` |"
        yield "| `server/server.key` | pretend to be the server, until its certificate ends | the server |"
    yield "| `devices/NAME/node_key` | pretend to be device NAME | that device |"
