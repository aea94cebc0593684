"""A deployment: its devices and its files, as DIR/deployment.yaml describes them.

Device number i acts for client i of every run; numbers never change.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from fedkd import errors, strict_yaml
from fedkd.configuration import compose, validate
from fedkd.errors import ConfigError, Mistake
from simulations.deploy import files, names, yaml_files
from simulations.deploy.kit import Kit

FILE = "deployment.yaml"
SCHEMA = 1
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_NONE = "make one: fedkd deploy init DIR --address HOST --devices 3"


@dataclass(frozen=True)
class DeviceEntry:
    """A device of a deployment, and the client of federated learning that it acts for."""

    name: str
    client: int  # from 0; Flower's partition-id
    fingerprint: str  # of the public key, as `ssh-keygen -l` shows it
    student: str | None = None  # architecture; None: that of the run


@dataclass(frozen=True)
class Deployment:
    """A folder with keys and certificates, and its devices."""

    folder: Path
    address: str  # at which devices reach the server
    port: int
    tls: bool
    devices: tuple[DeviceEntry, ...]  # in order of client
    overrides: tuple[str, ...] = ()  # the configuration of its runs; files by their absolute path

    @property
    def superlink(self) -> str:
        """`host:port`, as Flower reads it."""
        return names.with_port(self.address, self.port)

    @property
    def listen(self) -> str:
        """The address that the server binds to: loopback if its own address is loopback."""
        if names.is_loopback(self.address):
            return "127.0.0.1" if names.ip(self.address) is None else self.address
        return "::" if ":" in self.address else "0.0.0.0"

    @property
    def ca(self) -> Path:
        """The certificate that every device trusts."""
        return self.folder / "ca" / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca" / "ca.key"

    @property
    def server_certificate(self) -> Path:
        return self.folder / "server" / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.folder / "server" / "server.key"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def flwr_home(self) -> Path:
        return self.folder / ".flwr"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def kit(self, name: str) -> Path:
        """The folder that is copied to a device."""
        return self.folder / "devices" / name

    def load_kit(self, name: str) -> Kit:
        """The server's copy of a kit; the owner may have edited the copy on the device. Raises ConfigError."""
        return Kit.load(self.kit(name))

    def public_key(self, name: str) -> Path:
        """A device's public key; it stays here after the kit has been deleted."""
        return self.folder / "server" / "keys" / f"{name}.pub"

    def student_overrides(self) -> list[str]:
        """The devices' architectures by client, as overrides of `fedkd run`; empty if no device names one."""
        students = [device.student for device in self.devices if device.student]
        return [f"students=[{', '.join(students)}]"] if students else []

    def run_overrides(self) -> list[str]:
        """All overrides of a run: the base configuration, and what follows from the devices."""
        return [*self.overrides, f"clients={len(self.devices)}", *self.student_overrides()]

    def find(self, name: str) -> DeviceEntry:
        """The device with that name. Raises ConfigError."""
        for device in self.devices:
            if device.name == name:
                return device
        known = [device.name for device in self.devices]
        raise ConfigError(f"there is no device '{name}'", where=str(self.folder), mend=validate.one_of(name, known))


@dataclass(frozen=True, kw_only=True)
class _File:
    schema: Literal[1]
    address: str
    port: Annotated[int, Ge(1), Le(65535)]
    tls: bool
    words: list[str]  # the overrides
    devices: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    client: Annotated[int, Ge(0)]
    fingerprint: str
    student: str | None = None


def exists(folder: Path) -> bool:
    """Whether a folder holds a deployment, readable or not."""
    return (folder / FILE).exists()


def load(folder: Path) -> Deployment:
    """The deployment in a folder. Raises ConfigError with all mistakes in its description."""
    folder = folder.resolve()
    draft = yaml_files.read(folder / FILE, "deployment", _NONE)
    file, mistakes = yaml_files.check(_File, draft)
    listed = draft.values.get("devices")
    entries = {}
    for name in listed if isinstance(listed, Mapping) else ():
        entries[name], more = yaml_files.check(_Entry, draft, ("devices", name))
        mistakes += more
    errors.refuse(mistakes)
    devices = [DeviceEntry(name, entry.client, entry.fingerprint, entry.student) for name, entry in entries.items()]
    errors.refuse(_wrong(file.address, devices, draft))
    by_client = tuple(sorted(devices, key=lambda device: device.client))
    overrides = tuple(str(folder / override) if is_file(override) else override for override in file.words)
    return Deployment(folder, file.address, file.port, file.tls, by_client, overrides)


def save(deployment: Deployment) -> None:
    """Write the description, atomically. Raises FolderError."""
    files.replace(deployment.folder / FILE, describe(deployment))


def describe(deployment: Deployment) -> files.Content:
    """The file deployment.yaml."""
    write = strict_yaml.write
    lines = [
        "# A deployment of fedkd. You may edit `words`, the configuration of its runs. `fedkd deploy init` and `add`",
        "# write everything else, and the devices rely on it.",
        f"schema: {SCHEMA}",
        f"address: {write(deployment.address)}",
        f"port: {deployment.port}",
        f"tls: {write(deployment.tls)}",
        "words:" if deployment.overrides else "words: []",
        *(f"  - {write(_relative(override, deployment.folder))}" for override in deployment.overrides),
        "devices:",
    ]
    for device in deployment.devices:
        entry = {"client": device.client, "student": device.student, "fingerprint": device.fingerprint}
        lines.append(f"  {write(device.name)}: {write(entry)}")
    return files.text("\n".join(lines) + "\n")


def is_file(override: str) -> bool:
    """Whether an override names a YAML file."""
    return "=" not in override and override.endswith((".yaml", ".yml"))


def _wrong(address: str, devices: list[DeviceEntry], draft: validate.Draft) -> list[Mistake]:
    """Mistakes that the types do not exclude."""
    mistakes = []
    if mend := names.address(address):
        mistakes.append(draft.mistake(("address",), mend))
    if sorted(device.client for device in devices) != list(range(len(devices))) or not devices:
        clients = ", ".join(str(device.client) for device in devices) or "none"
        mend = f"must be 0 to {len(devices) - 1}, each once" if devices else "name at least one"
        mistakes.append(Mistake(f"the clients of devices are {clients}", draft.source(("devices",)), mend))
    for device in devices:
        path = ("devices", device.name)
        if mend := names.device(device.name):
            mistakes.append(Mistake(f"device '{device.name}'", draft.source(path), mend))
        if not _FINGERPRINT.fullmatch(device.fingerprint):
            mistakes.append(draft.mistake((*path, "fingerprint"), "ssh-keygen -l shows it: SHA256: and 43 letters"))
    for device, mend in wrong_students(devices):
        mistakes.append(draft.mistake(("devices", device.name, "student"), mend))
    keys = [device.fingerprint for device in devices]
    for key in names.duplicates(keys):
        both = " and ".join(device.name for device in devices if device.fingerprint == key)
        mistakes.append(Mistake(f"{both} have the same key", draft.source(("devices",)), "each device needs its own"))
    return mistakes


def wrong_students(devices: list[DeviceEntry]) -> list[tuple[DeviceEntry, str]]:
    """Devices whose student is unknown, or missing while others have one; each with how to mend it."""
    known, has_any = compose.options("students"), any(device.student for device in devices)
    wrong = [
        (device, validate.one_of(device.student, known)) for device in devices if device.student not in (None, *known)
    ]
    return wrong + [(d, "name one for each device, or for none") for d in devices if has_any and d.student is None]


def _relative(override: str, folder: Path) -> str:
    """A relative path for a file inside the deployment, whose folder may move."""
    path = Path(override)
    return str(path.relative_to(folder)) if is_file(override) and path.is_relative_to(folder) else override
