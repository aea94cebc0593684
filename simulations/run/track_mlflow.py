"""MLflow. Package: the extra `mlflow`. Without MLFLOW_TRACKING_URI it writes `mlflow.db` beside the run folders."""

import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

from filelock import FileLock

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at the import

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fedkd import strict_yaml
from fedkd.configuration.resolved import Resolved
from fedkd.record import ledger
from simulations.run import tracking
from simulations.run.run_folder import RunFolder
from simulations.run.tensorboard import scalars

_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_MOST = 100  # params in a message; metrics may be more
_LONGEST = 6000  # characters of a param
_NO_NAME = re.compile(r"[^A-Za-z0-9_\-. :/]")
_MARK = "bytes/up"  # a metric that every round has


def make(resolved: Resolved, folder: RunFolder) -> "Mlflow":
    return Mlflow(resolved, folder)


class Mlflow:
    """One run in an MLflow store."""

    def __init__(self, resolved: Resolved, folder: RunFolder) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.resolved, self.folder = resolved, folder
        self._runs = folder.path.absolute().parent
        self._lock: AbstractContextManager[Any] = nullcontext()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            self._lock = FileLock(self._runs / "mlflow.db.lock")  # the runs of a comparison write side by side
            uri = f"sqlite:///{self._runs / 'mlflow.db'}"
        with self._lock:
            self._client = MlflowClient(tracking_uri=uri)
        self._id, self._last = "", 0  # of the run there, and its newest round: a resume repeats some

    def restart(self, rows: Sequence[ledger.Row], timings: Sequence[ledger.Row]) -> None:
        """Continue the run after the last round that the store has; a new run if it has none."""
        with self._lock:
            last = self._continued()
            if last is None:
                self._id, last = self._begun(), 0
        self._last = last
        at = {row["round"]: row for row in timings}
        for row in rows:
            self.write(row, at.get(row["round"], {}))

    def write(self, row: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """All numbers of a round, under TensorBoard's names; the step is the round."""
        if row["round"] > self._last:
            self._log(scalars(row, timings), row["round"], float(timings.get("at", time.time())))

    def finish(self, totals: Mapping[str, Any]) -> None:
        """The summary as metrics `summary/...` and tags, and how the run has ended."""
        flat = {f"summary/{key}": value for key, value in ledger.flat(totals).items()}
        numbers = {key: value for key, value in flat.items() if isinstance(value, int | float)}
        self._log(numbers.items(), totals["rounds"], time.time())
        with self._lock:
            for key, value in flat.items():
                if isinstance(value, str):
                    self._client.set_tag(self._id, _named(key), value)
            self._client.set_terminated(self._id, _STATUS[totals["status"]])

    def _continued(self) -> int | None:
        """Take up the run of run.json: its last round; None if there is none."""
        id_ = tracking.identity(self.folder, "mlflow")
        if id_ is None:
            return None
        try:
            self._client.update_run(id_, status="RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store, or deleted there
                return None
            raise
        self._id = id_
        return max((metric.step for metric in self._client.get_metric_history(id_, _MARK)), default=0)

    def _begun(self) -> str:
        run = self._client.create_run(self._experiment(), run_name=self.folder.id)
        id_ = str(run.info.run_id)
        tracking.keep_identity(self.folder, "mlflow", id_)
        values = self.resolved.values().items()
        params = [Param(_named(key), strict_yaml.write(value)[:_LONGEST]) for key, value in values]
        for some in _batches(params):
            self._client.log_batch(id_, params=some)
        self._client.log_batch(id_, tags=[RunTag("fedkd.folder", str(self.folder.path))])
        return id_

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedkd")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _log(self, values: Iterable[tuple[str, float]], step: int, at: float) -> None:
        metrics = [Metric(_named(key), value, int(at * 1000), step) for key, value in values if math.isfinite(value)]
        with self._lock:
            for some in _batches(metrics):
                self._client.log_batch(self._id, metrics=some)


def _named(key: str) -> str:
    """The key with those characters alone that MLflow takes, at most 250."""
    return _NO_NAME.sub("_", key)[:250]


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(items)
    while some := list(islice(left, _MOST)):
        yield some
