"""`fedkd.run`, `load`, `compare`, `partition` and `iterate`. Free of torch until a run begins."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import extensions
from fedkd.configuration import compose
from fedkd.configuration.resolved import Resolved
from fedkd.errors import ConfigError, FolderError
from fedkd.record import ledger
from simulations.api import words
from simulations.api.calling import ended, shown
from simulations.api.run import Run
from simulations.api.study import Study
from simulations.run import options, progress, run_folder
from simulations.run import runs as running
from simulations.system.threads import one_thread

if TYPE_CHECKING:
    from fedkd.rounds import Round
    from simulations.api.partition import ClientPartition

Place = str | PathLike[str]
Part = str | PathLike[str] | Mapping[str, Any]


def run(
    *parts: Part,
    runs: Place = "runs",
    name: str | None = None,
    out: Place | None = None,
    py: Sequence[Place] = (),
    quiet: bool | None = None,
    **keys: object,
) -> Run:
    """Run a configuration in a new folder, as `fedkd run` does: same keys, same folder, same bytes.

    `parts` are words of a command line, YAML files or mappings, `keys` single values; where a name would stand, an
    object may: `students` a class or a function (shape, classes) -> torch module, `data` a `fedkd.Data`. The new
    folder is `out`, else `name` below `runs`. `py`: files of own code, executed first. `quiet`: show no progress; by
    default it is shown on a terminal.

    Raises FedkdError with the words of the command line. Ctrl-C saves, then raises KeyboardInterrupt.

    >>> import fedkd, tempfile
    >>> run = fedkd.run("strategy=fedavg rounds=1", clients=2, train={"steps": 1}, out=tempfile.mkdtemp())
    >>> run.state, run.config["train"]["steps"], len(run.rows("clients"))
    ('done', 1, 2)
    >>> student = run.student()
    >>> student(student.preprocess([[[[0] * 8] * 8]])).shape
    torch.Size([1, 10])
    """
    given = _words(parts, keys, py)
    asked = shown(options.Run, quiet)
    with progress.make(asked) as screen:
        resolved = _in_process(compose.resolve(given, announce=lambda: screen.phase("loading PyTorch")))
        place: dict[str, Any] = {"runs": Path(runs), "name": name, "out": _path(out)}
        command = ["fedkd", "run", *given]
        with one_thread():
            return Run(ended(running.start(resolved, **place, options=asked, screen=screen, command=command)))


def compare(
    *parts: Part | Run,
    runs: Place = "runs",
    name: str | None = None,
    out: Place | None = None,
    py: Sequence[Place] = (),
    quiet: bool | None = None,
    jobs: int | None = None,
    baseline: str | None = None,
    metric: str | None = None,
    target: float | None = None,
    tune: Sequence[str] = (),
    tune_seeds: int | None = None,
    **keys: object,
) -> Study:
    """Compare methods, as `fedkd compare` does: a list is the values to go through, `strategy=["fedavg", "fedgen"]`.

    The same call continues after a stop. With objects of this session, the runs are played here one after another.
    Raises FedkdError; Ctrl-C saves, then raises KeyboardInterrupt. Runs that failed are in `Study.failed`.
    """
    given = _words(parts, keys, py, grid=True)
    from simulations.compare import command, session

    asked = shown(
        options.Compare,
        quiet,
        overrides=tuple(given),
        runs=Path(runs),
        name=name,
        out=_path(out),
        jobs=jobs,
        baseline=baseline,
        metric=metric,
        target=target,
        tune=tuple(tune),
        tune_seeds=tune_seeds,
    )
    prepared = command.prepare(asked)
    if any(resolved.session for resolved in prepared.tasks.values()):
        prepared = replace(prepared, jobs=1, options=replace(asked, debug=True))
    with one_thread():
        session.run(prepared)
    return Study(prepared.folder)


def load(folder: Place, **objects: object) -> Run | Study:
    """A run or a comparison from its folder, or from a name below `runs`.

    `objects`: what the run got from a Python session, as it got it: `students=MyNet`. Raises FolderError if there is
    neither, ConfigError for other objects.
    """
    words.register(objects)
    path = Path(folder)
    for place in (path, Path("runs") / path):
        if (place / ledger.PLAN).exists():
            return Study(place)
        if (place / "run.json").exists():
            return Run(place)
    inside = (
        [place.name for place in path.iterdir() if (place / "run.json").exists() or (place / ledger.PLAN).exists()]
        if path.is_dir()
        else []
    )
    if inside:
        what = f"{path} is a folder of {len(inside)} runs and comparisons"
        raise FolderError(what, mend=f"load one, {str(path / min(inside))!r}, or the rows of all: fedkd.load_runs")
    return Run(run_folder.find(Path("runs"), path))


def partition(*parts: Part, py: Sequence[Place] = (), **keys: object) -> "ClientPartition":
    """Which client holds which samples, as `fedkd partition` shows it: `fedkd.partition("partition.alpha=0.1")`.

    Raises ConfigError and DataError.
    """
    resolved = compose.resolve(_words(parts, keys, py))
    from simulations.api import partition

    return partition.of(resolved.config)


def iterate(*parts: Part, py: Sequence[Place] = (), **keys: object) -> "Iterator[Round]":
    """The rounds of a run one by one, in this process and without a folder, for loops of one's own.

    Each has the state after it, its row of metrics.jsonl, those of clients, failures and seconds. Raises FedkdError.

    >>> import fedkd
    >>> [done.row["round"] for done in fedkd.iterate(clients=2, rounds=2, train={"steps": 1})]
    [1, 2]
    """
    return _rounds(compose.resolve(_words(parts, keys, py)))


def _rounds(resolved: Resolved) -> "Iterator[Round]":
    from fedkd import rounds
    from simulations import assemble
    from simulations.engines.inline import Inline

    with one_thread():
        assembly = assemble.assemble(resolved.config)
        state = rounds.begin(assembly.experiment)
    while state.round < resolved.config.rounds:
        with one_thread():
            done = rounds.run_round(assembly.experiment, Inline(assembly.site), state)
        state = done.state
        yield done


def _words(
    parts: Sequence[Part | Run], keys: Mapping[str, object], py: Sequence[Place], *, grid: bool = False
) -> list[str]:
    for path in [py] if isinstance(py, str | Path) else py:
        extensions.load(Path(path))
    return words.of([part.folder / "config.yaml" if isinstance(part, Run) else part for part in parts], keys, grid=grid)


def _in_process(resolved: Resolved) -> Resolved:
    """The same configuration for this process, if it has objects of this session. Raises ConfigError for Ray."""
    config = resolved.config
    if not resolved.session:
        return resolved
    if config.engine.name == "ray":
        what = f"Ray's workers do not have this session's {', '.join(resolved.session)}"
        raise ConfigError(what, where="engine", mend="leave engine out, or put the code into a file: py=['mine.py']")
    return replace(resolved, config=replace(config, engine=replace(config.engine, name="inline")))


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(os.fspath(place))
