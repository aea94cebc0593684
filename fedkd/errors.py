"""Errors that a user can mend: each says what, where and how, and carries its exit code."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedkd import plain_text

_LONGEST = 100_000  # characters of an error; an error of a comparison names all its runs


@dataclass(frozen=True)
class Mistake:
    """One mistake: what (`rounds = 0`), where (`my.yaml:4`), how to mend it."""

    what: str
    where: str = ""
    mend: str = ""
    add: str = ""  # an override that mends it, to add to the command line


class FedkdError(Exception):
    """Base of all errors that are not bugs. `topic` heads the message, `code` is the exit code."""

    topic = "fedkd"
    code = 1

    def __init__(self, what: str, *, where: str = "", mend: str = "", mistakes: tuple[Mistake, ...] = ()) -> None:
        self.what, self.where, self.mend = what, where, mend
        self.mistakes = mistakes or (Mistake(what, where, mend),)
        super().__init__(self.message())

    @property
    def headline(self) -> str:
        """What is wrong and where, on one line, for a record."""
        return "; ".join(f"{m.what} ({m.where})" if m.where else m.what for m in self.mistakes)

    def message(self) -> str:
        """The text for people: one mistake as a sentence, several as a table. Quoted text cannot steer a terminal."""
        return plain_text.printable(self._message(), _LONGEST, keep="\n\t")

    def _message(self) -> str:
        if len(self.mistakes) > 1:
            width = max(len(p.what) for p in self.mistakes)
            place = max(len(p.where) for p in self.mistakes)
            rows = [f"{p.what:<{width}}   {p.where:<{place}}   {p.mend}".rstrip() for p in self.mistakes]
            return "\n       ".join([f"{self.topic}: {len(self.mistakes)} problems", *rows])
        only = self.mistakes[0]
        head = f"{self.topic}: {only.what}" + (f" ({only.where})" if only.where else "")
        return f"{head}\n       {only.mend}" if only.mend else head


class ConfigError(FedkdError):
    """Usage or configuration."""

    topic, code = "config", 2


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raises ConfigError with all mistakes, without duplicates, if there are any."""
    if distinct := tuple(dict.fromkeys(mistakes)):
        raise ConfigError(distinct[0].what, where=distinct[0].where, mend=distinct[0].mend, mistakes=distinct)


class DataError(FedkdError):
    """Data or environment: missing, damaged, no such device."""

    topic, code = "data", 3


class EngineError(FedkdError):
    """The engine cannot start or has died."""

    topic, code = "engine", 3


class RunError(FedkdError):
    """The run cannot continue: quorum, divergence. `failures` are the engine.Failure values behind it."""

    topic, code = "run", 4

    def __init__(self, what: str, *, where: str = "", mend: str = "", failures: tuple[Any, ...] = ()) -> None:
        self.failures = failures
        super().__init__(what, where=where, mend=mend)


class FolderError(FedkdError):
    """A run folder in use, existing, not writable, or a full disk."""

    topic, code = "run folder", 5


class CheckpointError(FedkdError):
    """A damaged or incompatible checkpoint."""

    topic, code = "checkpoint", 6


class DeployError(FedkdError):
    """A deployment: key, certificate, address, node."""

    topic, code = "deploy", 7
