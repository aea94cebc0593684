"""`fedkd deploy init`, `add` and `renew`: make and extend a deployment, without overwriting or partial results."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd import errors
from fedkd.errors import ConfigError, DeployError
from simulations.deploy import certificates, files, kit, layout, plan, request
from simulations.deploy.files import Content, PlaceError
from simulations.deploy.plan import Deployment, Device
from simulations.run.options import Deploy, Options


def init(asked: Deploy) -> int:
    """Make a deployment and print the next steps; gives the exit code. Raises FedkdError."""
    deployment = make(asked)
    say = plan.command
    shown = asked.folder
    first = deployment.devices[0].name
    lines = [
        f"made   {shown}   {len(deployment.devices)} devices, server {deployment.superlink}, "
        + ("TLS" if deployment.tls else "NO TLS: for this machine only"),
        f"next   copy each kit to its device: {say('scp', '-rp', str(shown / 'devices' / first), first)}:",
        f"       {say('fedkd', 'deploy', 'server', str(shown))}",
        f"       all commands, in their order: {shown / 'README.md'}",
    ]
    return _end(deployment, lines, asked)


def make(asked: Deploy, now: datetime | None = None) -> Deployment:
    """A new deployment. Raises ConfigError with all mistakes of the request, and FolderError."""
    folder = _refuse_used(asked.folder)
    devices, words = request.check(asked)
    keys = {device.name: certificates.node_key(device.name) for device in devices}
    devices = [replace(device, fingerprint=keys[device.name].fingerprint) for device in devices]
    deployment = Deployment(folder, asked.address, asked.port, not asked.insecure, tuple(devices), words.words)
    memory_mb = dict.fromkeys(keys, asked.memory_mb)
    tree = layout.of_server(deployment, now or _now()) | layout.of_everybody(deployment, memory_mb)
    for device in devices:
        tree |= layout.of_device(deployment, device, keys[device.name], tree.get("ca/ca.crt"), asked.memory_mb)
    tree |= {**words.copies, plan.FILE: plan.describe(deployment)}
    with files.appearing(folder) as temporary:
        files.fill(temporary, tree)
    return deployment


def add(folder: Path, devices: str, options: Options, memory_mb: int | None = None) -> int:
    """Make kits for more devices and print what else has changed; gives the exit code. Raises FedkdError."""
    before = plan.load(folder)
    deployment, edited = extend(folder, devices, memory_mb)
    new = deployment.devices[len(before.devices) :]
    lines = [f"made   {deployment.kit(device.name)}   client {device.client}" for device in new]
    lines.append(f"note   `clients` is now {len(deployment.devices)}: change it in node.yaml of kits that were copied")
    lines += [f"note   {name} was edited and stays as it is: add the new devices to it" for name in edited]
    return _end(deployment, lines, options, added=[device.name for device in new], edited=edited)


def extend(folder: Path, devices: str, memory_mb: int | None = None) -> tuple[Deployment, list[str]]:
    """Add devices to a deployment; existing numbers stay. Also gives the shared files that were edited, and so kept.

    Raises ConfigError and FolderError, and then changes nothing.
    """
    with _alone(folder), ExitStack() as undo:
        before = plan.load(folder)
        new, mistakes = request.parse(devices, before.devices)
        errors.refuse(mistakes or request.check_words(before.words, [*before.devices, *new]))
        keys = {device.name: certificates.node_key(device.name) for device in new}
        new = [replace(device, fingerprint=keys[device.name].fingerprint) for device in new]
        after = replace(before, devices=(*before.devices, *new))
        ca = Content(files.read(before.ca)) if before.tls else None
        for device in new:
            _place_kit(after, device, layout.of_device(after, device, keys[device.name], ca, memory_mb), undo)
        edited = _refresh(before, after, dict.fromkeys(keys, memory_mb), undo)
        plan.save(after)  # last: files that it does not name are not part of the deployment
        undo.pop_all()
    return after, edited


def renew(folder: Path, options: Options) -> int:
    """Make and report a new server certificate; gives the exit code. Raises FedkdError."""
    deployment = certify(folder)
    days = certificates.days_left(deployment.server_certificate, _now())
    lines = [
        f"made   {deployment.server_certificate}   for {deployment.address}, {days} days",
        "next   start the server again; kits stay as they are",
    ]
    return _end(deployment, lines, options, days_left=days)


def certify(folder: Path, now: datetime | None = None) -> Deployment:
    """A new certificate of the server by the same CA, with the same key if there is one. Raises FedkdError."""
    now = now or _now()
    with _alone(folder):
        deployment = plan.load(folder)
        if not deployment.tls:
            raise ConfigError(f"{folder} has no certificates", mend="it was made with --insecure: make another one")
        if not deployment.ca_key.exists():
            mend = "bring it back from where it is kept; without it, make a new deployment"
            raise DeployError("the key of the CA is missing", where=str(deployment.ca_key), mend=mend)
        ca = certificates.load(deployment.ca, deployment.ca_key)
        certificates.check_authority(ca, now, deployment.ca)
        old = certificates.load_key(deployment.server_key) if deployment.server_key.exists() else None
        made = certificates.server(ca, deployment.address, now, old)
        if old is None:  # key first: after a crash the same command adds the certificate
            files.create(deployment.server_key, made.key_file)
        files.replace(deployment.server_certificate, made.certificate_file)
    return deployment


def _place_kit(deployment: Deployment, device: Device, tree: files.Tree, undo: ExitStack) -> None:
    """Put a new device's files into a deployment."""
    home, public = deployment.kit(device.name), deployment.public_key(device.name)
    for place in (home, public):
        if place.exists():
            mend = "it is no part of the deployment: an `add` that was killed may have left it; delete it"
            raise PlaceError("there is one already", where=str(place), mend=mend)
    prefix = f"devices/{device.name}/"
    with files.appearing(home) as temporary:
        files.fill(temporary, {name.removeprefix(prefix): c for name, c in tree.items() if name.startswith(prefix)})
    undo.callback(shutil.rmtree, home, ignore_errors=True)
    files.fill(deployment.folder, {name: c for name, c in tree.items() if not name.startswith(prefix)})
    undo.callback(public.unlink, missing_ok=True)


def _refresh(before: Deployment, after: Deployment, memory_mb: Mapping[str, int | None], undo: ExitStack) -> list[str]:
    """Update the shared files and the older kits; gives the files that a user has edited, which stay."""
    kits = {device.name: before.load_kit(device.name) for device in before.devices if before.kit(device.name).exists()}
    memory = {name: found.memory_mb for name, found in kits.items()}
    was, new, edited = layout.of_everybody(before, memory), layout.of_everybody(after, {**memory, **memory_mb}), []
    for name, content in new.items():
        place = before.folder / name
        if place.exists() and files.read(place) == was[name].data:
            _swap(place, content, undo)
        else:
            edited.append(name)
    for found in kits.values():
        place = found.folder / kit.FILE
        counted = kit.recount(files.read(place).decode(), len(after.devices))
        _swap(place, files.text(counted), undo)
    return edited


def _swap(place: Path, content: Content, undo: ExitStack) -> None:
    undo.callback(files.replace, place, Content(files.read(place)))
    files.replace(place, content)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """An exclusive lock on the deployment. The kernel releases it when its holder dies."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        plan.load(folder)  # raises the specific error
        raise
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PlaceError("another command changes it right now", where=str(folder), mend="wait for it") from None
    finally:
        os.close(handle)


def _refuse_used(folder: Path) -> Path:
    """The deployment's folder. Raises FolderError if something is there already."""
    place = folder.resolve()
    try:
        str(place).encode()
    except UnicodeEncodeError:
        raise PlaceError(f"{str(place)!r} is no UTF-8", mend="choose another name") from None
    if plan.exists(place):
        mend = f"more devices: {plan.command('fedkd', 'deploy', 'add', str(folder), '--devices', 'NAME')}"
        raise PlaceError(f"{folder} holds a deployment; it is never overwritten", mend=mend)
    if place == Path.cwd().resolve():
        raise PlaceError(f"{folder} is the folder you are in, which is to be made anew", mend="name one below it")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise PlaceError(f"{folder} exists and is not empty", mend="choose another folder")
    return place


def _end(deployment: Deployment, lines: Sequence[str], options: Options, **more: Any) -> int:
    if options.json:
        devices = [
            {"name": d.name, "client": d.client, "student": d.student, "fingerprint": d.fingerprint}
            for d in deployment.devices
        ]
        found = {"deployment": str(deployment.folder), "superlink": deployment.superlink, "tls": deployment.tls}
        options.answer({**found, "devices": devices, **more})
    else:
        print("\n".join(lines[:1] if options.quiet else lines))
    return 0


def _now() -> datetime:
    return datetime.now(UTC)
