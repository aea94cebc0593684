"""The kit of a device: the folder that is copied to it. Its node.yaml belongs to the device's owner.

Relative paths in it are relative to the kit.
"""

import re
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from fedkd import errors, strict_yaml
from fedkd.configuration import compose, validate
from fedkd.errors import Mistake
from simulations.deploy import files, names, yaml_pages

FILE = "node.yaml"
SCHEMA = 1
_NONE = "name the folder that was copied from DIR/devices"
_PATHS = ("data", "state", "key", "ca")
_CLIENTS = re.compile(r"^clients:[ ]*[0-9]+", re.MULTILINE)

_COMMENTS = {
    "client": "the client of federated learning that this device acts for; never changes",
    "clients": "how many there are",
    "superlink": "the server",
    "student": "architecture that the deployment means for it; null: that of the run",
    "students": "YOURS: architectures that may be trained here, e.g. [mlp, lenet5]; null: all",
    "strategies": "YOURS: strategies that may train here, e.g. [fedgen, fedavg]; null: all",
    "memory_mb": "YOURS: megabytes of memory that training may take; null: no limit",
    "data": "YOURS: folder of the data; null: said by --data",
    "state": "YOURS: folder for what this device remembers between rounds",
    "runtime_port": "YOURS: a port of this machine, for Flower's own use, closed to others",
    "key": "secret: whoever has it is this device",
    "ca": "the certificate by which the server is recognised",
}


@dataclass(frozen=True)
class Kit:
    """A device's facts about its deployment, and its owner's limits."""

    folder: Path
    name: str
    client: int
    clients: int
    superlink: str  # host:port
    tls: bool
    student: str | None
    students: tuple[str, ...] | None  # allowed; None: all
    strategies: tuple[str, ...] | None  # allowed, by their names in conf/strategy; None: all
    memory_mb: int | None
    data: Path | None
    state: Path
    runtime_port: int
    key: Path
    ca: Path | None  # None without TLS

    @classmethod
    def load(cls, folder: Path) -> "Kit":
        """The kit in a folder. Raises ConfigError with all mistakes in its node.yaml."""
        folder = folder.resolve()
        draft = yaml_pages.read(folder / FILE, "kit of a device", _NONE)
        page, mistakes = yaml_pages.check(_Page, draft)
        errors.refuse(mistakes)
        errors.refuse(_wrong(page, draft))
        values = {field.name: getattr(page, field.name) for field in fields(page) if field.name != "schema"}
        values |= {name: _place(folder, values[name]) for name in _PATHS}
        return cls(folder, **values)

    def problems(self) -> list[Mistake]:
        """Problems of the kit's files; each keeps the device from joining."""
        mend = "copy the whole kit again, with its key"
        found = []
        if not self.key.is_file():
            found.append(Mistake("the device's key is missing", str(self.key), mend))
        elif self.key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            change = f"chmod 600 {self.key}"
            found.append(Mistake("others can read the device's key", str(self.key), change))
        if self.ca is not None and not self.ca.is_file():
            found.append(Mistake("the server's CA is missing", str(self.ca), mend))
        return found

    def describe(self) -> files.Content:
        """The file node.yaml."""
        rows = [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "folder"]
        rows = [("schema", SCHEMA), *rows]
        pairs = [(f"{name}: {self._write(value)}", _COMMENTS.get(name, "")) for name, value in rows]
        width = min(max(len(pair) for pair, _ in pairs), 40)
        lines = [f"{pair:<{width}}  # {comment}" if comment else pair for pair, comment in pairs]
        head = f"# The kit of device {self.name}. What is YOURS is decided on the device: nobody changes it from afar."
        return files.text("\n".join([head, *lines]) + "\n")

    def _write(self, value: Any) -> str:
        if isinstance(value, Path):
            value = str(value.relative_to(self.folder) if value.is_relative_to(self.folder) else value)
        return strict_yaml.write(list(value) if isinstance(value, tuple) else value)


@dataclass(frozen=True, kw_only=True)
class _Page:
    schema: Literal[1]
    name: str
    client: Annotated[int, Ge(0)]
    clients: Annotated[int, Ge(1)]
    superlink: str
    tls: bool
    student: str | None
    students: tuple[str, ...] | None
    strategies: tuple[str, ...] | None
    memory_mb: Annotated[int, Ge(1)] | None
    data: str | None
    state: str
    runtime_port: Annotated[int, Ge(1), Le(65535)]
    key: str
    ca: str | None


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


def _wrong(page: Any, draft: validate.Draft) -> list[Mistake]:
    """Mistakes that the types do not exclude."""
    mistakes = []
    if mend := names.device(page.name):
        mistakes.append(draft.mistake(("name",), mend))
    if page.client >= page.clients:
        mistakes.append(draft.mistake(("client",), f"must be below clients, which is {page.clients}"))
    if not split(page.superlink)[0]:
        mistakes.append(draft.mistake(("superlink",), "must be HOST:PORT, e.g. fl.example.org:8000 or [::1]:8000"))
    if page.tls != (page.ca is not None):
        mistakes.append(draft.mistake(("ca",), "must name a file" if page.tls else "must be null without tls"))
    for name in _PATHS:
        if getattr(page, name) == "":
            mistakes.append(draft.mistake((name,), "must not be empty"))
    return mistakes + _wrong_choices(page, draft)


def _wrong_choices(page: Any, draft: validate.Draft) -> list[Mistake]:
    """Architectures and strategies that do not exist, or that exclude each other."""
    mistakes = []
    known = compose.options("students")
    if page.student not in (None, *known):
        mistakes.append(draft.mistake(("student",), validate.one_of(page.student, known)))
    for key, group in (("students", known), ("strategies", compose.options("strategy"))):
        allowed = getattr(page, key)
        if allowed == ():
            mistakes.append(draft.mistake((key,), "nothing would be allowed; null allows all"))
        for name in allowed or ():
            if name not in group:
                what = f"{key} names {strict_yaml.write(name)}"
                mistakes.append(Mistake(what, draft.source((key,)), validate.one_of(name, group)))
    if page.student and page.students and page.student not in page.students:
        mistakes.append(draft.mistake(("student",), "is not among the students that this device allows"))
    return mistakes


def _place(folder: Path, written: str | None) -> Path | None:
    return None if written is None else folder / Path(written).expanduser()
