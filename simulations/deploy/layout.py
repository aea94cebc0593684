"""The files that `init` and `add` write, as contents by path. Does not touch the disk."""

import getpass
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from simulations.deploy import certificates, files, guide, kit, names, services
from simulations.deploy.certificates import NodeKey, Signed
from simulations.deploy.files import Content
from simulations.deploy.kit import Kit
from simulations.deploy.manifest import Deployment, DeviceEntry

# An allow list: everything else, including future files, stays out of version control.
_MAY_BE_COMMITTED = """\
*
!*/
!/.gitignore
!/.dockerignore
!/*.yaml
!/README.md
!/Containerfile
!/ca/ca.crt
!/server/server.crt
!/server/start.sh
!/server/*.service
!/server/keys/*.pub
!/devices/*/.gitignore
!/devices/*/node.yaml
!/devices/*/ca.crt
!/devices/*/start.sh
!/devices/*/*.service
"""
_OF_KIT = "*\n!/.gitignore\n!/node.yaml\n!/ca.crt\n!/start.sh\n!/*.service\n"
_FOR_IMAGES = "*\n!wheel/*.whl\n"  # what docker may read of this folder


def of_server(deployment: Deployment, now: datetime) -> dict[str, Content]:
    """The server's own files, with new keys and certificates if there is TLS."""
    tree = {
        ".gitignore": files.text(_MAY_BE_COMMITTED),
        ".dockerignore": files.text(_FOR_IMAGES),
        "Containerfile": services.containerfile(),
        "server/start.sh": services.server_script(),
        "server/fedkd-superlink.service": services.server_unit(deployment, _user(), Path(sys.executable).parent),
    }
    if not deployment.tls:
        return tree
    ca = certificates.authority(now)
    return tree | _signed("ca/ca", ca) | _signed("server/server", certificates.server(ca, deployment.address, now))


def of_device(
    deployment: Deployment,
    device: DeviceEntry,
    key: NodeKey,
    ca: Content | None,
    memory_mb: int | None,
) -> dict[str, Content]:
    """A device's kit, and its public key for the server."""
    home = deployment.kit(device.name)
    new = Kit(
        folder=home,
        schema=kit.SCHEMA,
        name=device.name,
        client=device.client,
        clients=len(deployment.devices),
        superlink=deployment.superlink,
        tls=deployment.tls,
        student=device.student,
        students=None,
        strategies=None,
        memory_mb=memory_mb,
        data=None,
        state=home / "state",
        runtime_port=names.runtime_port(device.client, deployment.port),
        key=home / "node_key",
        ca=home / "ca.crt" if ca else None,
    )
    contents = {
        kit.FILE: new.describe(),
        "node_key": key.private,
        "start.sh": services.kit_script(device.name),
        f"fedkd-{device.name}.service": services.kit_unit(new),
        ".gitignore": files.text(_OF_KIT),
        **({"ca.crt": ca} if ca else {}),
    }
    tree = {f"devices/{device.name}/{name}": content for name, content in contents.items()}
    return {**tree, f"server/keys/{device.name}.pub": key.public}


def of_all(deployment: Deployment, memory_mb: Mapping[str, int | None]) -> dict[str, Content]:
    """The shared files: those that name all devices."""
    owner = (os.getuid(), os.getgid())
    return {
        "compose.yaml": services.compose_file(deployment, memory_mb, *owner),
        "README.md": guide.readme(deployment),
    }


def _signed(name: str, pair: Signed) -> dict[str, Content]:
    return {f"{name}.crt": pair.certificate_file, f"{name}.key": pair.key_file}


def _user() -> str:
    """The user that owns the server's files and runs it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container the user may have no name
        return str(os.getuid())
