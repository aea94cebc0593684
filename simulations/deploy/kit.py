"""The kit of a device: the folder that is copied to the device. Its node.yaml belongs to the device's owner.

Relative paths in node.yaml are relative to the kit.
"""

import re
import stat
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from fedkd import errors, strict_yaml
from fedkd.configuration import compose, validate
from fedkd.errors import Mistake
from simulations.deploy import files, names, yaml_files

FILE = "node.yaml"
SCHEMA: Literal[1] = 1
_NONE = "name the folder that was copied from DIR/devices"
_PATHS = ("data", "state", "key", "ca")
_CLIENTS = re.compile(r"^clients:[ ]*[0-9]+", re.MULTILINE)

_COMMENTS = {
    "client": "the client of federated learning that this device acts for; never changes",
    "clients": "the number of clients",
    "superlink": "the server",
    "student": "architecture that the deployment assigns to this device; null: that of the run",
    "students": "YOURS: architectures that may be trained here, e.g. [mlp, lenet5]; null: all",
    "strategies": "YOURS: strategies that may train here, e.g. [fedgen, fedavg]; null: all",
    "memory_mb": "YOURS: megabytes of memory that training may use; null: no limit",
    "data": "YOURS: folder of the data; null: given by --data",
    "state": "YOURS: folder for this device's memory between rounds",
    "runtime_port": "YOURS: a local port for Flower's own use, closed to other machines",
    "key": "secret: whoever holds it can act as this device",
    "ca": "the certificate that authenticates the server",
}


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A device's facts about its deployment, and its owner's limits: the keys of node.yaml, and its folder."""

    folder: Path = Path()
    schema: Literal[1]
    name: str
    client: Annotated[int, Ge(0)]
    clients: Annotated[int, Ge(1)]
    superlink: str  # host:port
    tls: bool
    student: str | None
    students: tuple[str, ...] | None  # allowed; None: all
    strategies: tuple[str, ...] | None  # allowed, by their names in conf/strategy; None: all
    memory_mb: Annotated[int, Ge(1)] | None
    data: Path | None
    state: Path
    runtime_port: Annotated[int, Ge(1), Le(65535)]
    key: Path
    ca: Path | None  # None without TLS

    @classmethod
    def load(cls, folder: Path) -> "Kit":
        """The kit in a folder. Raises ConfigError with all mistakes in its node.yaml."""
        folder = folder.resolve()
        draft = yaml_files.read(folder / FILE, "kit of a device", _NONE)
        kit, mistakes = yaml_files.check(cls, draft, keys=_keys())
        errors.refuse(mistakes)
        errors.refuse(_wrong(kit, draft))
        written = ((name, getattr(kit, name)) for name in _PATHS)
        paths = {name: None if path is None else folder / path.expanduser() for name, path in written}
        return replace(kit, folder=folder, **paths)

    def problems(self) -> list[Mistake]:
        """Problems of the kit's files; any of them keeps the device from joining."""
        mend = "copy the whole kit again, with its key"
        problems = []
        if not self.key.is_file():
            problems.append(Mistake("the device's key is missing", str(self.key), mend))
        elif self.key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            problems.append(Mistake("others can read the device's key", str(self.key), f"chmod 600 {self.key}"))
        if self.ca is not None and not self.ca.is_file():
            problems.append(Mistake("the server's CA is missing", str(self.ca), mend))
        return problems

    def describe(self) -> files.Content:
        """The file node.yaml."""
        pairs = [(f"{name}: {self._write(getattr(self, name))}", _COMMENTS.get(name, "")) for name in _keys()]
        width = min(max(len(pair) for pair, _ in pairs), 40)
        lines = [f"{pair:<{width}}  # {comment}" if comment else pair for pair, comment in pairs]
        head = f"# The kit of device {self.name}. Keys marked YOURS are for the owner: nobody can change them remotely."
        return files.text("\n".join([head, *lines]) + "\n")

    def _write(self, value: Any) -> str:
        if isinstance(value, Path):
            value = str(value.relative_to(self.folder) if value.is_relative_to(self.folder) else value)
        return strict_yaml.write(list(value) if isinstance(value, tuple) else value)


def recount(text: str, clients: int) -> str:
    """The text of a node.yaml with another number of clients; the owner's changes stay."""
    return _CLIENTS.sub(f"clients: {clients}", text)


def split(superlink: str) -> tuple[str, int]:
    """Host and port; ("", 0) if it is not `host:port`."""
    host, _, port = superlink.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    is_right = port.isascii() and port.isdigit() and not names.port(int(port[:6])) and is_bracketed == (":" in host)
    return (host, int(port)) if is_right and not names.address(host) else ("", 0)


def _wrong(kit: Kit, draft: validate.Draft) -> list[Mistake]:
    """Mistakes that the types do not exclude."""
    mistakes = []
    if mend := names.device(kit.name):
        mistakes.append(draft.mistake(("name",), mend))
    if kit.client >= kit.clients:
        mistakes.append(draft.mistake(("client",), f"must be below clients, which is {kit.clients}"))
    if not split(kit.superlink)[0]:
        mistakes.append(draft.mistake(("superlink",), "must be HOST:PORT, e.g. fl.example.org:8000 or [::1]:8000"))
    if kit.tls != (kit.ca is not None):
        mistakes.append(draft.mistake(("ca",), "must name a file" if kit.tls else "must be null without tls"))
    mistakes += [draft.mistake((name,), "must not be empty") for name in _PATHS if draft.values[name] == ""]
    return mistakes + _wrong_choices(kit, draft)


def _wrong_choices(kit: Kit, draft: validate.Draft) -> list[Mistake]:
    """Architectures and strategies that do not exist, or that exclude each other."""
    mistakes = []
    known = compose.options("students")
    if kit.student not in (None, *known):
        mistakes.append(draft.mistake(("student",), validate.one_of(kit.student, known)))
    for key, group in (("students", known), ("strategies", compose.options("strategy"))):
        allowed = getattr(kit, key)
        if allowed == ():
            mistakes.append(draft.mistake((key,), "this allows nothing; null allows all"))
        for name in allowed or ():
            if name not in group:
                what = f"{key} names {strict_yaml.write(name)}"
                mistakes.append(Mistake(what, draft.source((key,)), validate.one_of(name, group)))
    if kit.student and kit.students and kit.student not in kit.students:
        mistakes.append(draft.mistake(("student",), "is not among the students that this device allows"))
    return mistakes


def _keys() -> list[str]:
    return [field.name for field in fields(Kit) if field.name != "folder"]
