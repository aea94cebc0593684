"""What users add to fedkd: students, data sets, metrics, partitions and algorithms (docs/own-code.md).

It comes from a file (`--py FILE`), from the entry points of an installed package, or from a Python session. Code is
chosen on the command line or in Python, never by a configuration file. Free of torch.
"""

import hashlib
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from fedkd.errors import ConfigError, FedkdError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = Literal["strategy", "client", "student", "data", "partition", "metric"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GROUPS: Mapping[Kind, str] = {  # of entry points
    "strategy": "fedkd.strategies",
    "client": "fedkd.clients",
    "student": "fedkd.students",
    "data": "fedkd.data",
    "partition": "fedkd.partitions",
    "metric": "fedkd.metrics",
}
LIBRARIES = ("torchvision:", "timm:")  # begin the name of another library's student
SESSION = "this session"  # the origin of what a notebook or a script registers
MOST_BYTES = 1 << 20  # of a file: it is copied into every run folder

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,49}")
T = TypeVar("T")


@dataclass(frozen=True)
class Extension:
    """An object that a user registered under a name."""

    kind: Kind
    name: str
    value: Any
    origin: str  # `mine.py`, a package, or SESSION
    options: Mapping[str, Any] = field(default_factory=dict)  # the other arguments of its decorator


@dataclass(frozen=True)
class UserFile:
    """A Python file of the user. It is executed once per process; unpickling it executes it too."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def module(self) -> str:
        """The module's name in every process: the same text has the same name."""
        return f"fedkd_user_{re.sub(r'[^0-9A-Za-z]', '_', self.stem)}_{self.sha256[:12]}"

    @property
    def stem(self) -> str:
        """The name of the file's only strategy, client or setting, if it gives none: `my_net.py` -> `my-net`."""
        return Path(self.name).stem.replace("_", "-")

    def __reduce__(self) -> tuple[Callable[[str, str], "UserFile"], tuple[str, str]]:
        return executed, (self.name, self.text)


_registered: dict[tuple[Kind, str], Extension] = {}
_files: dict[str, UserFile] = {}  # by module
_paths: dict[str, Path] = {}  # where the text of a module was read
_origins: list[str] = [SESSION]  # the last one registers


def register(kind: Kind, name: str, value: T, **options: Any) -> T:
    """Make `value` known as `name`; a session may register a name again. Raises ConfigError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        mend = "use up to 50 of a-z, 0-9, - and _, beginning with a letter"
        raise ConfigError(f"{name!r} is no name for a {kind}", where=_origins[-1], mend=mend)
    if not callable(value):
        raise ConfigError(
            f"the {kind} '{name}' is a {type(value).__name__}",
            where=_origins[-1],
            mend=f"put @fedkd.{kind}({name!r}) above a function or a class",
        )
    before = _registered.get((kind, name))
    if before is not None and (before.origin, _origins[-1]) != (SESSION, SESSION):
        raise ConfigError(
            f"there are two {kind}s called '{name}'", where=f"{before.origin} and {_origins[-1]}", mend="rename one"
        )
    _registered[kind, name] = Extension(kind, name, value, _origins[-1], options)
    return value


def load(path: Path) -> UserFile:
    """Execute a file, once. Raises ConfigError: it is missing, too large, or its code raises."""
    try:
        content = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=str(path), mend="--py names a Python file") from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), mend="--py names a Python file") from error
    if len(content) > MOST_BYTES:
        mend = "keep data out of it, and put large code into an installed package"
        raise ConfigError(f"the file has {len(content)} bytes, at most {MOST_BYTES}", where=str(path), mend=mend)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the file is not UTF-8: {error}", where=str(path), mend="save it as UTF-8") from error
    file = UserFile(path.name, text)
    if other := next((known for known in files() if known.name == file.name and known != file), None):
        if _paths.get(other.module) != path.resolve():
            raise ConfigError(f"two files are called {other.name}", where=str(path), mend="rename one")
        _forget(other)  # a session has edited it
    loaded = _execute(file, str(path))
    _paths[loaded.module] = path.resolve()
    return loaded


def _forget(file: UserFile) -> None:
    del _files[file.module]
    for key in [key for key, extension in _registered.items() if extension.origin == file.name]:
        del _registered[key]


def executed(name: str, text: str) -> UserFile:
    """The file of that text, executed. Raises ConfigError."""
    return _execute(UserFile(name, text), name)


def files() -> tuple[UserFile, ...]:
    """All files that this process has executed, in order."""
    return tuple(_files.values())


def modules() -> Iterator[tuple[UserFile, ModuleType]]:
    """Each executed file with its module."""
    yield from ((file, sys.modules[name]) for name, file in _files.items())


def names(kind: Kind) -> tuple[str, ...]:
    """The registered names of a kind, sorted, with those of installed packages."""
    return tuple(sorted({extension.name for extension in registered(kind)} | set(_entry_points(kind))))


def registered(kind: Kind) -> tuple[Extension, ...]:
    """What files and this session have registered, without installed packages."""
    return tuple(extension for extension in _registered.values() if extension.kind == kind)


def origin(kind: Kind, name: str) -> str:
    """Where a name comes from: a file, this session or `an installed package`; loads nothing."""
    found = _registered.get((kind, name))
    return found.origin if found else "an installed package"


def find(kind: Kind, name: str) -> Extension | None:
    """What is registered under a name, or an installed package's. Raises ConfigError if that cannot be loaded."""
    if (kind, name) in _registered:
        return _registered[kind, name]
    point = _entry_points(kind).get(name)
    if point is None:
        return None
    value = loaded(point, f"the entry point '{name}' of {GROUPS[kind]}")
    return Extension(kind, name, value, point.dist.name if point.dist else point.module)


def session_hash(kind: Kind, name: str) -> str:
    """The hash of what this Python session registered under a name; empty if it registered nothing."""
    found = _registered.get((kind, name))
    if found is None or found.origin != SESSION or name in _entry_points(kind):  # a package's module may use decorators
        return ""
    from fedkd import fingerprint  # late: imports numpy

    return fingerprint.of((found.value, found.options))


def loaded(point: "EntryPoint", what: str) -> Any:
    """What an installed package offers. Raises ConfigError: its code may be of another version of fedkd."""
    try:
        return point.load()
    except FedkdError:
        raise
    except Exception as error:  # somebody else's code: anything
        package = point.dist.name if point.dist else point.module
        raise ConfigError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}",
            where=point.value,
            mend=f"'{package}' must go with this version of fedkd: mend it, install another, or uninstall it",
        ) from error


@contextmanager
def kept() -> Iterator[None]:
    """Forget, at the end, what was registered and executed inside: for tests."""
    registered, executed_files = dict(_registered), dict(_files)
    try:
        yield
    finally:
        for module in set(_files) - set(executed_files):
            sys.modules.pop(module, None)
        for known, before in ((_registered, registered), (_files, executed_files)):
            known.clear()
            known.update(before)  # type: ignore[arg-type]


def line_of(error: BaseException, filename: str) -> int | None:
    """The last line of a file that an exception passed through; None if it passed through none."""
    if isinstance(error, SyntaxError) and error.filename == filename:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    return lines[-1] if lines else None


def place(extension: Extension, error: BaseException) -> str:
    """Where an exception of a user's code was raised, `mine.py:12`, as far as its traceback shows it."""
    module = sys.modules.get(getattr(extension.value, "__module__", ""))
    filename = getattr(module, "__file__", None) or extension.origin
    line = line_of(error, filename)
    return f"{filename}:{line}" if line else extension.origin


def _execute(file: UserFile, filename: str) -> UserFile:
    if file.module in _files:
        return _files[file.module]
    module = ModuleType(file.module)
    module.__file__ = filename
    registered = dict(_registered)
    sys.modules[file.module] = module  # while it runs: dataclasses look their module up
    linecache.cache[filename] = (len(file.text), None, file.text.splitlines(keepends=True), filename)  # for tracebacks
    _origins.append(file.name)
    try:
        exec(compile(file.text, filename, "exec"), vars(module))
    except BaseException as error:
        sys.modules.pop(file.module)
        _registered.clear()
        _registered.update(registered)
        if isinstance(error, ConfigError | KeyboardInterrupt):
            raise
        line = line_of(error, filename)
        raise ConfigError(
            f"your file raises {type(error).__name__}: {error}",
            where=f"{filename}:{line}" if line else filename,
            mend="mend the file",
        ) from error
    finally:
        _origins.pop()
    _files[file.module] = file
    return file


def _entry_points(kind: Kind) -> "dict[str, EntryPoint]":
    return {point.name: point for point in _all_entry_points() if point.group == GROUPS[kind]}


@cache
def _all_entry_points() -> "tuple[EntryPoint, ...]":
    from importlib import metadata  # late: it takes a tenth of an error's time

    installed = metadata.entry_points()  # one scan of all packages
    return tuple(point for group in GROUPS.values() for point in installed.select(group=group))
