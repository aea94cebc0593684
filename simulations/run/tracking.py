"""Where the numbers of a run go besides its ledger: the places that `track` names.

TensorBoard's files are the run's own. W&B and MLflow are services with packages of their own (extras): they are asked
for before the run begins, and a service that fails later is dropped with one warning, because the ledger has it all.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from fedkd.configuration.resolved import Resolved
from fedkd.errors import DataError
from fedkd.record import ledger
from simulations.run.run_folder import RunFolder
from simulations.run.tensorboard import TensorBoardWriter
from simulations.system import redacted

_SERVICES = ("wandb", "mlflow")  # each is an extra, and a module of that name
_LONGEST = 200  # characters of a service's error

Warn = Callable[[str], None]


class Service(Protocol):
    """A service that shows runs."""

    def restart(self, rows: Sequence[ledger.Row], timings: Sequence[ledger.Row]) -> None:
        """Begin or continue the run there; `rows` are the rounds so far."""

    def write(self, row: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """Send the numbers of one round."""

    def finish(self, totals: Mapping[str, Any]) -> None:
        """Send the summary, and say how the run has ended."""


def check(track: Iterable[str]) -> None:
    """Raises DataError if a service's package is not installed."""
    for name in sorted(set(track) & set(_SERVICES)):
        if not is_installed(name):
            mend = f"pip install 'fedkd[{name}]', or leave {name} out of `track`"
            raise DataError(f"track names {name}, which is not installed", mend=mend)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


class Tracking:
    """All places of one run."""

    def __init__(self, resolved: Resolved, folder: RunFolder, about: str, warn: Warn) -> None:
        track = resolved.config.track
        is_curved = "tensorboard" in track
        self._curves = TensorBoardWriter(folder.path / "tb", about=about) if is_curved else None
        self._services = [_Guarded(name, resolved, folder, warn) for name in _SERVICES if name in track]

    def restart(self, rows: Sequence[ledger.Row], timings: Sequence[ledger.Row]) -> None:
        """Start again with the rows of earlier rounds. Raises OSError if the disk is full."""
        if self._curves is not None:
            self._curves.restart(rows, timings)
        for service in self._services:
            service.call(lambda it: it.restart(rows, timings))

    def write(self, row: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """The numbers of one round. Raises OSError if the disk is full."""
        if self._curves is not None:
            self._curves.write(row, timings)
        for service in self._services:
            service.call(lambda it: it.write(row, timings))

    def finish(self, totals: Mapping[str, Any]) -> None:
        """The summary, once, however the run has ended."""
        for service in self._services:
            service.call(lambda it: it.finish(totals))

    def close(self) -> None:
        """Close the files. May be called twice."""
        if self._curves is not None:
            self._curves.close()


class _Guarded:
    """A service that may fail at any time: it is dropped then, with one warning."""

    def __init__(self, name: str, resolved: Resolved, folder: RunFolder, warn: Warn) -> None:
        self._name, self._resolved, self._folder, self._warn = name, resolved, folder, warn
        self._service: Service | None = None
        self._has_failed = False

    def call(self, do: Callable[[Service], None]) -> None:
        if self._has_failed:
            return
        try:
            if self._service is None:
                self._service = self._made()
            do(self._service)
        except Exception as error:  # noqa: BLE001  a library of others and a network: anything
            self._has_failed = True
            reason = " ".join(redacted.text(f"{type(error).__name__}: {error}").split())[:_LONGEST]
            self._warn(f"{self._name} gets no more of this run ({reason}); the ledger has everything")

    def _made(self) -> Service:
        module = importlib.import_module(f"simulations.run.track_{self._name}")  # late: seconds
        made: Service = module.make(self._resolved, self._folder)
        return made


def identity(folder: RunFolder, service: str) -> str | None:
    """The run's id at a service; None if it has none, or if clients were left out since: no service unlearns rounds."""
    entry = folder.info().get("track", {}).get(service, {})
    return entry.get("id") if entry.get("without") == folder.info().get("without") else None


def keep_identity(folder: RunFolder, service: str, id_: str) -> None:
    """Note the run's id at a service in run.json, for a resume."""
    info = folder.info()
    folder.note(track={**info.get("track", {}), service: {"id": id_, "without": info.get("without")}})
