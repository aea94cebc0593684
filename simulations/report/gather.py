"""Gathers runs from anywhere: a comparison folder, a folder of runs, or single runs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import errors
from fedkd.errors import ConfigError, FolderError, Mistake
from simulations.analysis import metric, run_record
from simulations.analysis.metric import Metric
from simulations.analysis.run_record import RunRecord
from simulations.report import labels, number_text
from simulations.run import run_folder

if TYPE_CHECKING:
    from simulations.analysis.result import Question

PLAN = "plan.yaml"
_WHERE = "command line"
_COLUMNS = {"worst tenth": "clients.worst_decile last", "common": "common.mean last"}
_CANDIDATES = ("global last10", "clients.mean last10", "clients.pooled last10", "common.mean last10")


@dataclass(frozen=True)
class Choices:
    """The options for the analysis; None: the comparison's value, or one that all runs have."""

    metric: str | None = None
    baseline: str | None = None
    target: float | None = None


def collect(
    places: Sequence[str], folder: Path, choices: Choices | None = None, command: str = ""
) -> "tuple[Question, list[RunRecord]]":
    """The question and the runs; `places` are paths, or names below `folder`.

    Raises ConfigError for runs that cannot be compared, FolderError if no run is done.
    """
    choices = choices or Choices()
    folders = [_find(place, folder) for place in places]
    if len(folders) == 1 and (folders[0] / PLAN).exists():
        return _of_comparison(folders[0], choices)
    runs = _loose([path for place in folders for path in _runs_in(place)])
    if not any(run.is_done for run in runs):
        raise _nothing(runs, places)
    _check_data(runs)
    _check_lengths(runs)
    return _question(runs, choices, command), runs


def place(places: Sequence[str], runs: Path, out: Path | None) -> Path:
    """The folder of the report: `out`, else the single folder of the runs, else a new one named after the folders."""
    if out is not None:
        return out
    folders = sorted({str(_find(name, runs).resolve()) for name in places})
    if len(folders) == 1:
        return _find(places[0], runs)
    return runs / f"report-{hashlib.sha256(chr(10).join(folders).encode()).hexdigest()[:8]}"


def _find(name: str, runs: Path) -> Path:
    """A comparison, a folder of runs, or a run: by path, by name below `runs`, or by one of its own files."""
    for path in (Path(name), runs / name):
        folder = path.parent if path.name in (PLAN, "run.json", "report.html") and path.is_file() else path
        if (folder / PLAN).exists() or (folder / "run.json").exists():
            return folder
        if folder.name == "runs" and (folder.parent / PLAN).exists():
            return folder.parent
        single_runs, comparisons = run_folder.listed(folder), _comparisons_in(folder)
        if single_runs or comparisons:
            return comparisons[0] if len(comparisons) == 1 and not single_runs else folder
    return run_folder.find(runs, name)


def _comparisons_in(path: Path) -> list[Path]:
    return sorted(plan.parent for plan in path.glob(f"*/{PLAN}"))


def _runs_in(path: Path) -> list[Path]:
    if (path / "run.json").exists():
        return [path]
    if (path / PLAN).exists():
        from simulations.analysis import plan

        return [run.folder for run in plan.read(path)[1] if run.folder.exists()]
    return [*run_folder.listed(path), *(run for comparison in _comparisons_in(path) for run in _runs_in(comparison))]


def _of_comparison(folder: Path, choices: Choices) -> "tuple[Question, list[RunRecord]]":
    from simulations.analysis import plan

    question, runs = plan.read(folder)
    if not any(run.is_done for run in runs):
        raise _nothing(runs, [str(folder)])
    changes: dict[str, Any] = {}
    if choices.metric is not None:
        changes["metric"] = _checked(metric.parse(choices.metric, "--metric"), runs)
    if choices.baseline is not None:
        changes["baseline"] = _known(choices.baseline, question.methods)
    if choices.target is not None:
        changes["target"] = choices.target
    return replace(question, **changes), runs


def _loose(folders: Sequence[Path]) -> list[RunRecord]:
    """Runs without a plan: the differences of their configurations give setting and method."""
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    runs = [run_record.read("", "", 0, folder) for folder in distinct]
    places = labels.places([run.config for run in runs if run.config])
    return _once([_labelled(run, places) for run in runs])


def _once(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Only one run per configuration and seed counts: the first that is done."""
    first: dict[tuple[str, str, int], RunRecord] = {}
    for run in sorted(runs, key=lambda run: not run.is_done):
        first.setdefault((run.setting, run.method, run.seed), run)
    counted = [(run, first[run.setting, run.method, run.seed]) for run in runs]
    reason = "the same configuration and seed as {}, which counts"
    return [run if run is other else replace(run, reason=reason.format(other.folder.name)) for run, other in counted]


def _labelled(run: RunRecord, places: Mapping[labels.Key, labels.Place]) -> RunRecord:
    """The run with setting, method and seed; a run without a configuration failed, and has its folder's name."""
    if not run.config:
        return replace(run, method=run.folder.name, state="failed")
    place = places[labels.key(run.config)]
    return replace(run, setting=place.setting, method=place.method, seed=int(run.config.get("seed", 0)))


def _question(runs: Sequence[RunRecord], choices: Choices, command: str) -> "Question":
    from simulations.analysis.result import LOCAL, Question  # imports scipy

    configured = [run for run in runs if run.config] or list(runs)
    methods = tuple(dict.fromkeys(run.method for run in configured))
    plain = (run for run in configured if not run.config.get("parts"))
    simplest = [run.method for run in plain if run.info.get("strategy") in ("fedavg", LOCAL)]
    columns = {title: metric.parse(text) for title, text in _COLUMNS.items()}
    primary = metric.parse(choices.metric, "--metric") if choices.metric is not None else _shared(runs)
    return Question(
        name=runs[0].folder.name if len(runs) == 1 else number_text.listing(methods, 4),
        settings=tuple(sorted({run.setting for run in configured}, key=labels.natural)),
        methods=methods,
        seeds=tuple(sorted({run.seed for run in configured})),
        metric=_checked(primary, runs),
        baseline=[*simplest, *methods][0] if choices.baseline is None else _known(choices.baseline, methods),
        columns={title: m for title, m in columns.items() if m.path != primary.path and _has(m, runs)},
        target=choices.target,
        command=command,
        about="A single run: no comparison, so no statistics." if len(runs) == 1 else "",
    )


def _has(wanted: Metric, runs: Sequence[RunRecord]) -> bool:
    return any(wanted.value(run) is not None for run in runs if run.is_done)


def _shared(runs: Sequence[RunRecord]) -> Metric:
    """The first usual metric that all runs have, or else that most have."""
    done = [run for run in runs if run.is_done]
    usual = [metric.parse(text) for text in _CANDIDATES]
    return max(usual, key=lambda candidate: sum(candidate.value(run) is not None for run in done))


def _checked(wanted: Metric, runs: Sequence[RunRecord]) -> Metric:
    """Raises ConfigError if no run has it."""
    if _has(wanted, runs):
        return wanted
    paths = sorted({path for run in runs if run.is_done for path in _paths(run.rows[-1])})
    raise ConfigError(f"no run has the metric '{wanted.path}'", where="--metric", mend=f"they have {', '.join(paths)}")


def _paths(row: Mapping[str, Any]) -> list[str]:
    from fedkd.record.ledger import flat

    parts = {key: row.get(key) or {} for key in ("accuracy", "local_accuracy", "drift", "terms", "server")}
    numbers = [key for key, value in flat(parts).items() if isinstance(value, int | float)]
    return [*(key.removeprefix("accuracy.") for key in numbers), "bytes.all", "seconds.total"]


def _known(baseline: str, methods: Sequence[str]) -> str:
    if baseline in methods:
        return baseline
    raise ConfigError(f"there is no method '{baseline}'", where="--baseline", mend=f"one of: {', '.join(methods)}")


def _check_data(runs: Sequence[RunRecord]) -> None:
    """Raises ConfigError unless all methods have the same data sets; a data set may be a setting."""
    by_method: dict[str, set[str]] = {}
    by_data: dict[str, list[str]] = {}
    for run in runs:
        if data := str(run.config.get("data.name", "")):
            by_method.setdefault(run.method, set()).add(data)
            by_data.setdefault(data, []).append(run.folder.name)
    if len({frozenset(names) for names in by_method.values()}) > 1:
        listed = "; ".join(f"{data}: {number_text.listing(names, 3)}" for data, names in by_data.items())
        mend = "give runs of every method on the same data, or make a report for each"
        raise ConfigError(f"runs of different data: {listed}", where=_WHERE, mend=mend)


def _check_lengths(runs: Sequence[RunRecord]) -> None:
    """Raises ConfigError, with names, if the runs of a setting are configured with different numbers of rounds."""
    mistakes = []
    configured = [run for run in runs if run.config]
    for setting in dict.fromkeys(run.setting for run in configured):
        lengths: dict[int, list[str]] = {}
        for run in configured:
            if run.setting == setting:
                lengths.setdefault(int(run.config["rounds"]), []).append(run.folder.name)
        if len(lengths) > 1:
            listed = (f"{rounds} rounds: {number_text.listing(names, 3)}" for rounds, names in sorted(lengths.items()))
            problem = f"runs of different lengths{f' in {setting}' if setting else ''}: {'; '.join(listed)}"
            mistakes.append(Mistake(problem, _WHERE, "give runs of one length, or make a report for each"))
    errors.refuse(mistakes)


def _nothing(runs: Sequence[RunRecord], places: Sequence[str]) -> FolderError:
    reasons = "; ".join(f"{run.folder.name}: {run.reason or run.state}" for run in runs[:3])
    return FolderError(
        f"no run is done{f' ({reasons})' if reasons else ''}",
        where=", ".join(places[:3]),
        mend="fedkd resume RUN continues it",
    )
