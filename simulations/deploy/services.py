"""Files that start a server and its devices: scripts, systemd units, containers. Does not touch the disk."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from simulations.deploy import files
from simulations.deploy.kit import Kit
from simulations.deploy.manifest import Deployment

UNIT_HOME = "/opt/fedkd"  # where a device's unit expects its kit and, in venv, fedkd
RESTART_SECONDS = 75  # for 60 s after a crash Flower counts a node as online and refuses it
OVERHEAD_MB = 1024  # memory of Python, PyTorch and Flower's processes, in addition to training
# The Python packages of a device: the group `edge` of pyproject.toml.
EDGE = (
    "torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "flwr>=1.42,<1.43", "omegaconf>=2.3", "pyyaml>=6",
    "pydantic>=2.7", "annotated-types>=0.6", "safetensors>=0.4", "filelock>=4.3", "rich>=13", "pillow>=10",
    "cryptography>=42",
)  # fmt: skip

# The kit or deployment is the script's own folder, or the one above. Neither `cd` nor command substitution, which would
# cut a newline at the end of a path.
_SCRIPT = """\
#!/bin/sh
# {about}
set -eu
case $0 in */*) here=${{0%/*}}/ ;; *) here=./ ;; esac
case $here in /* | ./*) ;; *) here=./$here ;; esac
exec fedkd deploy {verb} "$here{place}" "$@"
"""

_UNIT = """\
# {about}
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User={user}
Environment="PATH={path}:/usr/local/bin:/usr/bin:/bin"
ExecStart=/usr/bin/env fedkd deploy {verb} "{argument}"
UMask=0077
KillMode=mixed
TimeoutStopSec=40
SuccessExitStatus=143
Restart=on-failure
RestartSec={seconds}
RestartPreventExitStatus=2
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths="{folder}"
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
CapabilityBoundingSet=
{memory}
[Install]
WantedBy=multi-user.target
"""

_CONTAINERFILE = """\
# Images of the server and of a device. They install fedkd from a wheel:
#   pip wheel --no-deps --wheel-dir wheel PATH_OF_FEDKD
FROM docker.io/library/python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu HOME=/tmp USER=fedkd
COPY wheel/ /wheel/
ENTRYPOINT ["fedkd", "deploy"]

FROM base AS server
RUN pip install /wheel/fedkd-*.whl

FROM base AS device
RUN pip install {packages} \\
    && pip install --no-deps /wheel/fedkd-*.whl
"""

# The host's network: addresses and ports are the same in containers and outside.
_SERVICE = """\
  {name}:
    image: fedkd-{target}
    build: {{context: ., dockerfile: Containerfile, target: {target}}}
    command: {command}
    network_mode: host
    user: "${{FEDKD_UID:-{uid}}}:${{FEDKD_GID:-{gid}}}"
    volumes: {volumes}
    restart: on-failure
    stop_grace_period: 40s
    init: true
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    mem_limit: "${{{variable}_MEMORY:-{memory}m}}"
    cpus: "${{{variable}_CPUS:-{cpus}}}"
    pids_limit: 512
"""


def server_script() -> files.Content:
    return _script("Starts the server of this deployment, in the foreground.", "server", "..")


def kit_script(name: str) -> files.Content:
    return _script(f"Starts device {name}, in the foreground: ./start.sh --data PATH", "client", "")


def server_unit(deployment: Deployment, user: str, programs: Path) -> files.Content:
    """The unit of the server, for the deployment's current path; `programs`: the folder of the fedkd command."""
    place = _quoted(str(deployment.folder))
    text = _UNIT.format(
        about="Install: systemctl enable --now PATH_OF_THIS_FILE. Contains the deployment's path: edit if moved.",
        description=f"fedkd, server of {_quoted(deployment.superlink)}",
        user=user,
        path=_quoted(str(programs)),
        verb="server",
        argument=place.replace("$", "$$"),  # only ExecStart expands variables
        seconds=RESTART_SECONDS,
        folder=place,
        memory="",
    )
    return files.text(text)


def kit_unit(kit: Kit) -> files.Content:
    """The unit of a device whose kit is below UNIT_HOME."""
    place = f"{UNIT_HOME}/{kit.name}"
    about = f"Expects the kit in {place}, owned by user fedkd, with `data` set in its node.yaml, and"
    text = _UNIT.format(
        about=f"{about} fedkd in {UNIT_HOME}/venv.\n# Install: systemctl enable --now {place}/fedkd-{kit.name}.service",
        description=f"fedkd, device {kit.name}",
        user="fedkd",
        path=f"{UNIT_HOME}/venv/bin",
        verb="client",
        argument=place,
        seconds=RESTART_SECONDS,
        folder=place,
        memory=f"MemoryMax={kit.memory_mb + OVERHEAD_MB}M\n" if kit.memory_mb else "",
    )
    return files.text(text)


def containerfile() -> files.Content:
    packages = " ".join(f"'{package}'" for package in EDGE)
    return files.text(_CONTAINERFILE.format(packages=packages))


def compose_file(deployment: Deployment, memory_mb: Mapping[str, int | None], uid: int, gid: int) -> files.Content:
    """Server and devices as containers of one machine; `memory_mb` by device."""
    return files.text("".join(_compose(deployment, memory_mb, uid, gid)))


def variable(name: str) -> str:
    """The prefix of the environment variables of a device's container."""
    return "FEDKD_" + name.upper().replace("-", "_")


def _compose(deployment: Deployment, memory_mb: Mapping[str, int | None], uid: int, gid: int) -> Iterator[str]:
    yield "# Server and devices in containers, all on this machine: docker compose up --build (see Containerfile).\n"
    yield "# A device elsewhere: copy its kit, Containerfile and this file, and start its service alone.\n"
    yield "services:\n"
    shared = {"uid": uid, "gid": gid}
    yield _SERVICE.format(
        name="superlink",
        target="server",
        command="[server, /deployment]",
        volumes='[".:/deployment"]',
        variable="FEDKD_SERVER",
        memory=4096,
        cpus=2,
        **shared,
    )
    for device in deployment.devices:
        own = variable(device.name)
        yield "\n" + _SERVICE.format(
            name=f"device-{device.name}",
            target="device",
            command="[client, /kit, --data, /data]",
            volumes=f'["./devices/{device.name}:/kit", "${{{own}_DATA:-./data/{device.name}}}:/data:ro"]',
            variable=own,
            memory=(memory_mb.get(device.name) or OVERHEAD_MB) + OVERHEAD_MB,
            cpus=1,
            **shared,
        )


def _script(about: str, verb: str, place: str) -> files.Content:
    return files.text(_SCRIPT.format(about=about, verb=verb, place=place), files.PROGRAM)


def _quoted(text: str) -> str:
    """Text inside the quotation marks of a unit: `%` begins a specifier there."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped)
