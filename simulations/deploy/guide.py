"""README.md of a deployment: its commands in order, with its own paths."""

from collections.abc import Iterator

from simulations.deploy import files
from simulations.deploy.manifest import FILE, Deployment
from simulations.deploy.services import RESTART_SECONDS, UNIT_HOME, variable

_COMMANDS = (
    ("scp -rp devices/{first} {first}:", "1. copy each kit to its device; a kit for this machine may stay where it is"),
    ("fedkd deploy server .", "2. the server, in the foreground; or server/start.sh"),
    ("fedkd deploy client {first} --data PATH", "3. on the device, beside the kit; or {first}/start.sh --data PATH"),
    ("fedkd deploy run .", "4. a run; overrides may follow: fedkd deploy run . rounds=20 seed=2"),
    ("fedkd deploy status .", "5. the devices, the run, and the days until the certificate expires"),
    ("fedkd deploy stop .", "6. end the run and the server; devices keep their state"),
)

_KITS = """\
## Kits
`devices/NAME` is all that a device needs. Its `node.yaml` belongs to the device's owner: it says which students and
strategies may be trained on the device, how much memory training may use, and where the data are. Nobody can change it
remotely. Images and labels stay on the device.

A kit contains the key by which the server recognises the device: whoever holds `node_key` can act as this device. Copy
it over a channel that you trust, then delete `devices/NAME/node_key` here: the server needs only
`server/keys/NAME.pub`.
"""

_SECRETS = """\
## Secrets
| file | whoever holds it can | needed by |
|---|---|---|
{rows}

`.gitignore` lists what may be committed; these files are not on the list. Their permissions are 0600.
"""

_TLS = """\
## Certificates
The server's certificate is valid for 365 days. `fedkd deploy renew .` makes the next one; then restart the server. The
kits do not change. Only `renew` needs `ca/ca.key`, so you may keep this key on another machine.
"""

_PLAIN = """\
## No TLS
This deployment was made with `--insecure`: others on the network can read and change everything that is sent, and
anybody can join. Use it on one machine only.
"""

_SERVICES = """\
## Start with the machine
`server/fedkd-superlink.service` and `devices/NAME/fedkd-NAME.service` are units for systemd. A device's unit expects
the kit in `{home}/NAME`, and `data` set in its `node.yaml`. After a crash it waits {seconds} seconds before it
restarts: for 60 seconds Flower counts the node as online and refuses it.

## Containers
```
pip wheel --no-deps --wheel-dir wheel PATH_OF_FEDKD
docker compose up --build --detach           # or podman-compose; data of a device: {variable}_DATA=PATH
```
The limits are in `compose.yaml`. Containers use the network of the host.

## More devices
`fedkd deploy add . --devices NAME` makes more kits. The numbers of older devices do not change; `clients` in the
`node.yaml` of their kits does.
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
    rows = ["## Devices", f"From `{FILE}`. You may edit `words` there: the configuration of the runs.", ""]
    rows += ["| device | client | student | key |", "|---|---|---|---|"]
    rows += [f"| {d.name} | {d.client} | {d.student or 'as the run'} | {d.fingerprint} |" for d in deployment.devices]
    return "\n".join(rows) + "\n"


def _secrets(deployment: Deployment) -> Iterator[str]:
    if deployment.tls:
        yield "| `ca/ca.key` | act as the server, for ten years | `fedkd deploy renew` |"
        yield "| `server/server.key` | act as the server, until its certificate expires | the server |"
    yield "| `devices/NAME/node_key` | act as device NAME | that device |"
