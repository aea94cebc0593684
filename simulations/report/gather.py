"""Runs made anywhere, brought together: a comparison folder, a folder of runs, or runs one by one."""

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
class Wanted:
    """The options beside the runs; None: the comparison's value, or one that all runs have."""

    metric: str | None = None
    baseline: str | None = None
    target: float | None = None


def collect(
    places: Sequence[str], runs: Path, wanted: Wanted | None = None, command: str = ""
) -> "tuple[Question, list[RunRecord]]":
    """The question and the runs. Raises ConfigError for runs that cannot be compared, FolderError for none."""
    wanted = wanted or Wanted()
    folders = [_find(place, runs) for place in places]
    if len(folders) == 1 and (folders[0] / PLAN).exists():
        return _of_comparison(folders[0], wanted)
    found = _loose([folder for place in folders for folder in _runs_in(place)])
    if not any(each.is_done for each in found):
        raise _nothing(found, places)
    _check_data(found)
    _check_lengths(found)
    return _question(found, wanted, command), found


def place(places: Sequence[str], runs: Path, out: Path | None) -> Path:
    """Where the report goes: `out`, else the one folder that is meant, else a new one named after them."""
    if out is not None:
        return out
    folders = sorted({str(_find(each, runs).resolve()) for each in places})
    if len(folders) == 1:
        return _find(places[0], runs)
    return runs / f"report-{hashlib.sha256(chr(10).join(folders).encode()).hexdigest()[:8]}"


def _find(wanted: str, runs: Path) -> Path:
    """A comparison, a folder of runs, or a run: a path, or a name below `runs`; any of its own files means it too."""
    for path in (Path(wanted), runs / wanted):
        place = path.parent if path.name in (PLAN, "run.json", "report.html") and path.is_file() else path
        if (place / PLAN).exists() or (place / "run.json").exists():
            return place
        if place.name == "runs" and (place.parent / PLAN).exists():
            return place.parent
        its_runs, comparisons = run_folder.listed(place), _comparisons_in(place)
        if its_runs or comparisons:
            return comparisons[0] if len(comparisons) == 1 and not its_runs else place
    return run_folder.find(runs, wanted)


def _comparisons_in(path: Path) -> list[Path]:
    return sorted(plan.parent for plan in path.glob(f"*/{PLAN}"))


def _runs_in(path: Path) -> list[Path]:
    if (path / "run.json").exists():
        return [path]
    if (path / PLAN).exists():
        from simulations.analysis import plan

        return [each.folder for each in plan.read(path)[1] if each.folder.exists()]
    return [*run_folder.listed(path), *(run for each in _comparisons_in(path) for run in _runs_in(each))]


def _of_comparison(folder: Path, wanted: Wanted) -> "tuple[Question, list[RunRecord]]":
    from simulations.analysis import plan

    question, found = plan.read(folder)
    if not any(each.is_done for each in found):
        raise _nothing(found, [str(folder)])
    changed: dict[str, Any] = {}
    if wanted.metric is not None:
        changed["metric"] = _checked(metric.parse(wanted.metric, "--metric"), found)
    if wanted.baseline is not None:
        changed["baseline"] = _known(wanted.baseline, question.methods)
    if wanted.target is not None:
        changed["target"] = wanted.target
    return replace(question, **changed), found


def _loose(folders: Sequence[Path]) -> list[RunRecord]:
    """Members of runs that no plan names; where they stand is told by what differs in their configurations."""
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    read = [run_record.read("", "", 0, folder) for folder in distinct]
    named = labels.places([each.config for each in read if each.config])
    return _once([_placed(each, named) for each in read])


def _once(found: Sequence[RunRecord]) -> list[RunRecord]:
    """A configuration and seed that was run twice counts once: the first that is done."""
    first: dict[tuple[str, str, int], RunRecord] = {}
    for each in sorted(found, key=lambda each: not each.is_done):
        first.setdefault((each.setting, each.method, each.seed), each)
    kept = [(each, first[each.setting, each.method, each.seed]) for each in found]
    same = "the same configuration and seed as {}, which counts"
    return [each if each is one else replace(each, reason=same.format(one.folder.name)) for each, one in kept]


def _placed(found: RunRecord, named: Mapping[labels.Key, labels.Place]) -> RunRecord:
    """A run without a configuration stands below its folder's name: it is listed with its reason."""
    if not found.config:
        return replace(found, method=found.folder.name, state="failed")
    where = named[labels.key(found.config)]
    return replace(found, setting=where.setting, method=where.method, seed=int(found.config.get("seed", 0)))


def _question(found: Sequence[RunRecord], wanted: Wanted, command: str) -> "Question":
    from simulations.analysis.result import LOCAL, Question  # imports scipy

    placed = [each for each in found if each.config] or list(found)
    methods = tuple(dict.fromkeys(each.method for each in placed))
    plain = [each for each in placed if not each.config.get("parts")]
    simplest = [each.method for each in plain if each.info.get("strategy") in ("fedavg", LOCAL)]
    first = simplest[0] if simplest else methods[0]
    columns = {title: metric.parse(text) for title, text in _COLUMNS.items()}
    primary = metric.parse(wanted.metric, "--metric") if wanted.metric is not None else _shared(found)
    return Question(
        name=found[0].folder.name if len(found) == 1 else _title(placed),
        settings=tuple(sorted({each.setting for each in placed}, key=labels.natural)),
        methods=methods,
        seeds=tuple(sorted({each.seed for each in placed})),
        metric=_checked(primary, found),
        baseline=first if wanted.baseline is None else _known(wanted.baseline, methods),
        columns={title: each for title, each in columns.items() if each.path != primary.path and _has(each, found)},
        target=wanted.target,
        command=command,
        about="A single run: no comparison, so no statistics." if len(found) == 1 else "",
    )


def _has(wanted: Metric, found: Sequence[RunRecord]) -> bool:
    return any(wanted.value(run) is not None for run in found if run.is_done)


def _title(found: Sequence[RunRecord]) -> str:
    """`fedavg, fedgen, knfu`."""
    methods = list(dict.fromkeys(each.method for each in found))
    return ", ".join(methods[:4]) + (f" and {len(methods) - 4} more" if len(methods) > 4 else "")


def _shared(found: Sequence[RunRecord]) -> Metric:
    """The first of the usual metrics that all runs have, or else that most have."""
    done = [each for each in found if each.is_done]
    usual = [metric.parse(text) for text in _CANDIDATES]
    return max(usual, key=lambda each: sum(each.value(run) is not None for run in done))


def _checked(wanted: Metric, found: Sequence[RunRecord]) -> Metric:
    """Raises ConfigError if no run has it."""
    if _has(wanted, found):
        return wanted
    done = [each for each in found if each.is_done]
    paths = sorted({path for run in done for path in _paths(run.rows[-1])} if done else ())
    raise ConfigError(f"no run has the metric '{wanted.path}'", where="--metric", mend=f"they have {', '.join(paths)}")


def _paths(row: Mapping[str, Any]) -> list[str]:
    from fedkd.record.ledger import flat

    parts = {key: row.get(key) or {} for key in ("accuracy", "local_accuracy", "drift", "terms", "server")}
    numbers = [key for key, value in flat(parts).items() if isinstance(value, int | float)]
    return [*(key.removeprefix("accuracy.") for key in numbers), "bytes.all", "seconds.total"]


def _known(wanted: str, methods: Sequence[str]) -> str:
    if wanted in methods:
        return wanted
    raise ConfigError(f"there is no method '{wanted}'", where="--baseline", mend=f"one of: {', '.join(methods)}")


def _check_data(found: Sequence[RunRecord]) -> None:
    """Data may differ as a setting, for all methods alike; else runs have nothing to do with each other."""
    played: dict[str, set[str]] = {}
    runs: dict[str, list[str]] = {}
    for each in found:
        if data := str(each.config.get("data.name", "")):
            played.setdefault(each.method, set()).add(data)
            runs.setdefault(data, []).append(each.folder.name)
    if len({frozenset(names) for names in played.values()}) > 1:
        which = "; ".join(f"{data}: {number_text.listing(names, 3)}" for data, names in runs.items())
        mend = "give runs of every method on the same data, or make a report for each"
        raise ConfigError(f"runs of different data: {which}", where=_WHERE, mend=mend)


def _check_lengths(found: Sequence[RunRecord]) -> None:
    """Runs of one setting must have been asked to play as many rounds. Raises ConfigError that names them."""
    mistakes = []
    for setting in dict.fromkeys(each.setting for each in found if each.config):
        lengths: dict[int, list[str]] = {}
        for each in found:
            if each.config and each.setting == setting:
                lengths.setdefault(int(each.config["rounds"]), []).append(each.folder.name)
        if len(lengths) > 1:
            mistakes.append(_mistake(setting, lengths))
    errors.refuse(mistakes)


def _mistake(setting: str, lengths: Mapping[int, Sequence[str]]) -> Mistake:
    which = "; ".join(f"{rounds} rounds: {number_text.listing(names, 3)}" for rounds, names in sorted(lengths.items()))
    head = f"runs of different lengths{f' in {setting}' if setting else ''}: {which}"
    return Mistake(head, _WHERE, "give runs of one length, or make a report for each")


def _nothing(found: Sequence[RunRecord], places: Sequence[str]) -> FolderError:
    reasons = "; ".join(f"{each.folder.name}: {each.reason or each.state}" for each in found[:3])
    where = ", ".join(places[:3])
    return FolderError(
        f"no run is done{f' ({reasons})' if reasons else ''}", where=where, mend="fedkd resume RUN continues it"
    )
