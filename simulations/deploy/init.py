"""`fedkd deploy init`, `add` and `renew`: make and extend a deployment; never overwrite, never leave half a result."""

import fcntl
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd import errors
from fedkd.errors import ConfigError, DeployError
from simulations.deploy import certificates, files, kit, layout, manifest, request
from simulations.deploy.certificates import NodeKey
from simulations.deploy.files import Content, PlaceError
from simulations.deploy.manifest import Deployment, DeviceEntry
from simulations.run.options import Deploy, Options


def init(options: Deploy) -> int:
    """Make a deployment and print the next steps; returns the exit code. Raises FedkdError."""
    deployment = make(options)
    folder, first = options.folder, deployment.devices[0].name
    lines = [
        f"made   {folder}   {len(deployment.devices)} devices, server {deployment.superlink}, "
        + ("TLS" if deployment.tls else "NO TLS: for this machine only"),
        f"next   copy each kit to its device: {shlex.join(['scp', '-rp', str(folder / 'devices' / first), first])}:",
        f"       {shlex.join(['fedkd', 'deploy', 'server', str(folder)])}",
        f"       all commands in order: {folder / 'README.md'}",
    ]
    return _report(deployment, lines, options)


def make(options: Deploy, now: datetime | None = None) -> Deployment:
    """A new deployment. Raises ConfigError with all mistakes of the request, and FolderError."""
    folder = _unused(options.folder)
    devices, overrides, copies = request.check(options)
    devices, keys = _with_keys(devices)
    tls = not options.insecure
    deployment = Deployment(folder, options.address, options.port, tls, tuple(devices), tuple(overrides))
    memory_mb = dict.fromkeys(keys, options.memory_mb)
    tree = layout.of_server(deployment, now or _now()) | layout.of_all(deployment, memory_mb)
    for device in devices:
        tree |= layout.of_device(deployment, device, keys[device.name], tree.get("ca/ca.crt"), options.memory_mb)
    tree |= {**copies, manifest.FILE: manifest.describe(deployment)}
    with files.appearing(folder) as temporary:
        files.fill(temporary, tree)
    return deployment


def add(folder: Path, devices: str, options: Options, memory_mb: int | None = None) -> int:
    """Make kits for more devices and print what else has changed; returns the exit code. Raises FedkdError."""
    before = manifest.load(folder)
    deployment, edited = extend(folder, devices, memory_mb)
    new = deployment.devices[len(before.devices) :]
    lines = [f"made   {deployment.kit(device.name)}   client {device.client}" for device in new]
    lines.append(f"note   `clients` is now {len(deployment.devices)}: change it in the node.yaml of copied kits")
    lines += [f"note   {name} was edited, so it is unchanged: add the new devices to it" for name in edited]
    return _report(deployment, lines, options, added=[device.name for device in new], edited=edited)


def extend(folder: Path, devices: str, memory_mb: int | None = None) -> tuple[Deployment, list[str]]:
    """Add devices to a deployment; existing numbers stay. Also returns the shared files that a user has edited.

    On an error (ConfigError, FolderError) nothing has changed.
    """
    with _alone(folder), ExitStack() as undo:
        before = manifest.load(folder)
        new, mistakes = request.parse(devices, before.devices)
        errors.refuse(mistakes or request.check_overrides(before.overrides, [*before.devices, *new]))
        new, keys = _with_keys(new)
        after = replace(before, devices=(*before.devices, *new))
        ca = Content(files.read(before.ca)) if before.tls else None
        for device in new:
            _place_kit(after, device, layout.of_device(after, device, keys[device.name], ca, memory_mb), undo)
        edited = _refresh(before, after, dict.fromkeys(keys, memory_mb), undo)
        manifest.save(after)  # last: a kit that deployment.yaml does not name is not part of the deployment
        undo.pop_all()
    return after, edited


def renew(folder: Path, options: Options) -> int:
    """Make and report a new server certificate; returns the exit code. Raises FedkdError."""
    deployment = certify(folder)
    days = certificates.days_left(deployment.server_certificate, _now())
    lines = [
        f"made   {deployment.server_certificate}   for {deployment.address}, {days} days",
        "next   restart the server; the kits do not change",
    ]
    return _report(deployment, lines, options, days_left=days)


def certify(folder: Path, now: datetime | None = None) -> Deployment:
    """A new server certificate from the same CA, for the same key if there is one. Raises FedkdError."""
    now = now or _now()
    with _alone(folder):
        deployment = manifest.load(folder)
        if not deployment.tls:
            raise ConfigError(f"{folder} has no certificates", mend="it was made with --insecure: make another one")
        if not deployment.ca_key.exists():
            mend = "restore it from where you keep it; without it, make a new deployment"
            raise DeployError("the key of the CA is missing", where=str(deployment.ca_key), mend=mend)
        ca = certificates.load(deployment.ca, deployment.ca_key)
        certificates.check_authority(ca, now, deployment.ca)
        old = certificates.load_key(deployment.server_key) if deployment.server_key.exists() else None
        made = certificates.server(ca, deployment.address, now, old)
        if old is None:  # key first: after a crash the same command adds the certificate
            files.create(deployment.server_key, made.key_file)
        files.replace(deployment.server_certificate, made.certificate_file)
    return deployment


def _with_keys(devices: Sequence[DeviceEntry]) -> tuple[list[DeviceEntry], dict[str, NodeKey]]:
    """New keys by device name, and the devices with the fingerprints of these keys."""
    keys = {device.name: certificates.node_key(device.name) for device in devices}
    return [replace(device, fingerprint=keys[device.name].fingerprint) for device in devices], keys


def _place_kit(deployment: Deployment, device: DeviceEntry, tree: files.Tree, undo: ExitStack) -> None:
    """Put a new device's files into a deployment."""
    home, public = deployment.kit(device.name), deployment.public_key(device.name)
    for path in (home, public):
        if path.exists():
            mend = "it is not part of the deployment: an `add` that was killed may have left it; delete it"
            raise PlaceError("there is one already", where=str(path), mend=mend)
    prefix = f"devices/{device.name}/"
    with files.appearing(home) as temporary:
        files.fill(temporary, {name.removeprefix(prefix): c for name, c in tree.items() if name.startswith(prefix)})
    undo.callback(shutil.rmtree, home, ignore_errors=True)
    files.fill(deployment.folder, {name: c for name, c in tree.items() if not name.startswith(prefix)})
    undo.callback(public.unlink, missing_ok=True)


def _refresh(before: Deployment, after: Deployment, memory_mb: Mapping[str, int | None], undo: ExitStack) -> list[str]:
    """Update the shared files and the older kits; returns the shared files that a user has edited: they stay."""
    kits = {device.name: before.load_kit(device.name) for device in before.devices if before.kit(device.name).exists()}
    memory = {name: older.memory_mb for name, older in kits.items()}
    old, new, edited = layout.of_all(before, memory), layout.of_all(after, {**memory, **memory_mb}), []
    for name, content in new.items():
        path = before.folder / name
        if path.exists() and files.read(path) == old[name].data:
            _swap(path, content, undo)
        else:
            edited.append(name)
    for older in kits.values():
        path = older.folder / kit.FILE
        _swap(path, files.text(kit.recount(files.read(path).decode(), len(after.devices))), undo)
    return edited


def _swap(path: Path, content: Content, undo: ExitStack) -> None:
    undo.callback(files.replace, path, Content(files.read(path)))
    files.replace(path, content)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """An exclusive lock on the deployment. The kernel releases it when its holder dies."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        manifest.load(folder)  # raises the specific error
        raise
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PlaceError("another command is changing it", where=str(folder), mend="wait for it to end") from None
    finally:
        os.close(handle)


def _unused(folder: Path) -> Path:
    """The absolute path of a new deployment. Raises FolderError if something is there already."""
    path = folder.resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise PlaceError(f"{str(path)!r} is not UTF-8", mend="choose another name") from None
    if manifest.exists(path):
        mend = f"more devices: {shlex.join(['fedkd', 'deploy', 'add', str(folder), '--devices', 'NAME'])}"
        raise PlaceError(f"{folder} holds a deployment; it is never overwritten", mend=mend)
    if path == Path.cwd().resolve():
        raise PlaceError(f"{folder} is the folder you are in; init makes a new one", mend="name one below it")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PlaceError(f"{folder} exists and is not empty", mend="choose another folder")
    return path


def _report(deployment: Deployment, lines: Sequence[str], options: Options, **more: Any) -> int:
    if options.json:
        facts = {"deployment": str(deployment.folder), "superlink": deployment.superlink, "tls": deployment.tls}
        options.answer({**facts, "devices": [asdict(device) for device in deployment.devices], **more})
    else:
        print("\n".join(lines[:1] if options.quiet else lines))
    return 0


def _now() -> datetime:
    return datetime.now(UTC)
