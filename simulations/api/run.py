"""A run: what its folder holds, as numbers, tables, pictures and a student."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedkd import strict_yaml
from fedkd.errors import ConfigError, FolderError
from fedkd.record import ledger
from simulations.api import calling, frames, words
from simulations.run import console_text, run_folder, runs
from simulations.run.options import Options
from simulations.system.threads import one_thread

if TYPE_CHECKING:
    import altair
    import numpy as np
    import pandas

    from simulations.api.student import TrainedStudent
    from simulations.export.serving import Served

Table = Literal["rounds", "clients", "timings", "failures"]
_FILES = {"rounds": "metrics", "clients": "clients", "timings": "timings", "failures": "events"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. It is read anew at each use, so this also follows a run that goes on."""

    folder: Path

    @property
    def state(self) -> str:
        """`running`, `stopped`, `failed` or `done`."""
        return run_folder.state(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """The complete configuration, as nested mappings: `config["train"]["lr"]`."""
        try:
            text = (self.folder / "config.yaml").read_text(encoding="utf-8")
        except OSError as error:
            raise FolderError(f"config.yaml is unreadable: {error}", where=str(self.folder)) from error
        config: dict[str, Any] = strict_yaml.read(text, str(self.folder)).plain
        return config

    @property
    def summary(self) -> dict[str, Any]:
        """Accuracy, bytes and seconds so far: what `fedkd run --json` prints (docs/runs.md)."""
        return runs.totals(self.folder)

    @property
    def accuracy(self) -> float | None:
        """The latest: the global student's, else the mean over clients of their own. A fraction; None before any."""
        accuracy: dict[str, float] = self.summary["accuracy"]
        return accuracy.get("last")

    def rows(self, table: Table = "rounds") -> list[dict[str, Any]]:
        """Flat rows with dotted names, one per round, per round and client, or per failure. Raises ConfigError."""
        if table not in _FILES:
            raise ConfigError(f"there is no table '{table}'", where="table", mend=f"one of: {', '.join(_FILES)}")
        rows = ledger.tidy(ledger.read(self.folder), _FILES[table])
        return [row for row in rows if table != "failures" or row.get("event") == "failure"]

    def frame(self, table: Table = "rounds") -> "pandas.DataFrame":
        """`rows` as a data frame. Raises ConfigError if pandas is missing."""
        return frames.frame(self.rows(table))

    def plot(self, what: Literal["accuracy", "clients"] = "accuracy") -> "altair.TopLevelMixin":
        """A chart: accuracy by round, or the clients' latest accuracies. Raises ConfigError, e.g. without altair."""
        from simulations.api import charts

        if what not in charts.OF_RUN:
            raise ConfigError(f"there is no chart '{what}'", where="what", mend=f"one of: {', '.join(charts.OF_RUN)}")
        return frames.chart(charts.OF_RUN[what](self.rows("clients" if what == "clients" else "rounds")))

    def resume(self, *, rounds: int | str | None = None, quiet: bool | None = None) -> "Run":
        """Go on with a stopped run; a finished one stays as it is, unless it is to have more `rounds`: 80, or "+50".

        `quiet`: show no progress; by default it is shown on a terminal. Raises FedkdError, and KeyboardInterrupt after
        Ctrl-C.
        """
        more = () if rounds is None else (f"rounds={rounds}",)
        options = calling.shown(Options, quiet)
        with one_thread():
            totals = runs.resume(self.folder, runs=self.folder.parent, options=options, overrides=more)
        return Run(calling.ended(totals))

    def fork(
        self,
        *parts: str | Mapping[str, Any],
        at: int | None = None,
        rounds: int | str | None = None,
        name: str | None = None,
        quiet: bool | None = None,
        **keys: object,
    ) -> "Run":
        """Start a new run beside this one from its commit of round `at`, by default the newest.

        `parts` and `keys` change its configuration as in `fedkd.run`; `rounds`: 80 in all, or "+50" after the fork.
        Raises FedkdError, e.g. for what cannot change (docs/runs.md), and KeyboardInterrupt after Ctrl-C.
        """
        from simulations.run import fork

        given = [*words.of(parts, keys), *(() if rounds is None else (f"rounds={rounds}",))]
        command = ["fedkd", "fork", str(self.folder), *([] if at is None else ["--at", str(at)]), *given]
        where: dict[str, Any] = {"runs": self.folder.parent, "name": name, "command": command}
        with one_thread():
            return Run(
                calling.ended(fork.start(self.folder, given, at, options=calling.shown(Options, quiet), **where))
            )

    def student(self, client: int | None = None) -> "TrainedStudent":
        """The student at the newest checkpoint, the global one or a client's own, as its evaluation used it.

        It maps `student.preprocess(x)` (B, ...) to logits (B, classes). Raises ConfigError if there is no such student,
        CheckpointError if there is no checkpoint or the run had other code.
        """
        from simulations.api.student import TrainedStudent

        return TrainedStudent(self._served(client))

    def evaluate(
        self, x: Any = None, y: "Sequence[int] | Sequence[str] | np.ndarray | None" = None, *, client: int | None = None
    ) -> dict[str, float]:
        """`accuracy`, mean cross-entropy `loss` and number of `samples` of a student.

        On samples as stored (N, ...) with labels (N,), whole numbers or names; without both, on the run's held-out
        ones. Raises DataError if they do not fit.
        """
        from simulations.api import student

        return student.evaluate(self._served(client), x, y)

    def confusion(self, *, client: int | None = None) -> "np.ndarray":
        """Counts (classes, classes) of held-out samples: rows are true labels, columns predicted, by number."""
        from simulations.api import student

        return student.confusion(self._served(client))

    def _served(self, client: int | None) -> "Served":
        from simulations.export import serving

        with one_thread():
            run = serving.load(self.folder, calling.warn)
            return serving.student(run.assembly, run.state, client)

    def __repr__(self) -> str:
        info, accuracy = run_folder.info(self.folder), self.accuracy
        measured = "" if accuracy is None else f", accuracy {accuracy:.4f}"
        return f"<Run {self.folder}: {info['strategy']} on {info['data']}, {self.state}{measured}>"

    def _repr_html_(self) -> str:
        lines = console_text.portrait(runs.show(self.folder))
        return frames.table((), [line.split(maxsplit=1) for line in lines if line.strip()])
