"""plan.yaml: the request of a comparison folder, and where its runs are. Written atomically; free of torch."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import strict_yaml
from fedkd.configuration.resolved import Resolved
from fedkd.errors import ConfigError, FedkdError, FolderError
from fedkd.record import ledger
from simulations.analysis import candidates, choices, metric, run_record
from simulations.analysis.cells import Grid
from simulations.analysis.grid import COMMAND_LINE, Pair, Words
from simulations.analysis.run_record import RunRecord
from simulations.run import provenance, run_folder
from simulations.run.run_folder import RunFolder

if TYPE_CHECKING:
    from simulations.analysis.result import Question

FILE = "plan.yaml"
SCHEMA = 1
_FIRST = {"run.lock", f".{FILE}.new"}  # files that exist before the plan

_LONGEST_SLUG = 30
_PLACE = re.compile(r"(runs|tuning)/[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison; `folder` is below that of the comparison."""

    setting: str
    method: str
    seed: int
    words: Words  # without the seed
    digest: str  # of its configuration
    folder: str

    @property
    def name(self) -> str:
        """`fedgen, alpha 0.1, seed 3`."""
        return ", ".join(part for part in (self.method, self.setting, f"seed {self.seed}") if part)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison, as its folder describes it."""

    command: str
    asked: str  # hash of the request, without seeds and without values that only the analysis needs
    code: str  # hash of the code that determines results
    about: str
    settings: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    metric: str
    baseline: str
    columns: Mapping[str, str]
    target: float | None
    published: Mapping[str, Mapping[str, str]] | None
    cells: tuple[Cell, ...]
    tuning: Mapping[str, Any] | None = None  # the request of --tune: `candidates` of each method, `seeds`, `metric`
    tuned: tuple[
        Mapping[str, Any], ...
    ] = ()  # one row per setting and method: candidates, their values, the chosen one
    failed: Mapping[str, str] = field(default_factory=dict)  # folder -> why, for cells that failed last time

    def write(self, folder: RunFolder) -> None:
        """Raises FolderError, e.g. if the disk is full."""
        folder.write_text(FILE, "".join(_lines(self)))


def make(grid: Grid, asked: str, command: str, before: Plan | None = None) -> tuple[Plan, dict[Cell, Resolved]]:
    """The plan for a grid, and the configuration of each cell; keeps the seeds of the plan before.

    `asked`: the fingerprint of the request.
    """
    seeds = tuple(sorted({*grid.seeds, *(before.seeds if before else ())}))
    made = cells(grid, seeds)
    found = Plan(
        command=command,
        asked=asked,
        code=provenance.decisive(),
        about=grid.about,
        settings=grid.settings,
        methods=grid.methods,
        seeds=seeds,
        metric=str(grid.primary),
        baseline=grid.baseline,
        columns={title: str(column) for title, column in grid.columns.items()},
        target=grid.target,
        published=grid.published,
        cells=tuple(made),
    )
    return found, made


def cells(grid: Grid, seeds: Sequence[int], below: str = "runs") -> dict[Cell, Resolved]:
    """A cell for each pair and seed; seed after seed, so that early results can be compared."""
    made = {}
    for seed, pair in itertools.product(seeds, grid.words):
        resolved = grid.configuration(pair, seed)
        digest = resolved.digest()
        parts = [_slug(pair[1]), _slug(pair[0]), f"s{seed}", digest[:8], provenance.decisive()[:6]]
        folder = f"{below}/{'-'.join(filter(None, parts))}"
        made[Cell(*pair, seed, grid.words[pair], digest, folder)] = resolved
    return made


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", label)[:_LONGEST_SLUG].strip("-.").lower()


def fingerprint(words: Mapping[Pair, Words], tried: Mapping[str, Sequence[Words]]) -> str:
    """SHA-256 of the request without the seeds: independent of the order of overrides, settings and methods.

    `tried`: the candidates of each method; hashed once if all methods have the same.
    """
    pairs = sorted([*pair, sorted(set(its))] for pair, its in words.items())
    same = next(iter(tried.values()), candidates.NOTHING)
    return _sha256(json.dumps([pairs, same if candidates.alike(tried) else dict(sorted(tried.items()))]).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load(folder: Path) -> Plan | None:
    """The plan in a folder; None if there is nothing yet. Raises FolderError for an unreadable plan."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and (not folder.is_dir() or {each.name for each in folder.iterdir()} - _FIRST):
            mend = "choose another --name or --out"
            raise FolderError(f"{folder} exists and is no comparison", mend=mend) from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"cannot be read: {error}", where=str(path), mend=_AFRESH) from error
    try:
        found: Any = strict_yaml.read(text, str(path)).plain
        if found["schema"] != SCHEMA:
            what = f"the comparison was written by another version (schema {found['schema']}, here {SCHEMA})"
            raise FolderError(what, where=str(path), mend=_AFRESH)
        return _plan(found)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"plan.yaml is damaged: {error}", where=str(path), mend=_AFRESH) from error


_AFRESH = "choose another --name; the runs in it stay readable"


def is_done(folder: Path, digest: str) -> bool:
    """Whether a run is done, under exactly this configuration."""
    try:
        info = run_folder.info(folder)
        is_right = info.get("state") == "done" and info.get("config") == digest
        return is_right and len(ledger.rows(folder / "metrics.jsonl")) == info.get("num_rounds")
    except (FedkdError, OSError):
        return False


def read(folder: Path) -> "tuple[Question, list[RunRecord]]":
    """The question of a comparison folder, and its runs in any state. Raises FolderError."""
    found = load(folder)
    if found is None:
        raise FolderError(f"there is no comparison in {folder}", mend="fedkd compare makes one")
    return question(found, folder.name), members(found, folder)


def members(found: Plan, folder: Path) -> list[RunRecord]:
    """The records of a plan's runs."""
    return [_member(cell, folder, found.failed.get(cell.folder, "")) for cell in found.cells]


def _member(cell: Cell, folder: Path, failure: str) -> RunRecord:
    made = run_record.read(cell.setting, cell.method, cell.seed, folder / cell.folder, cell.words)
    return replace(made, state="failed", reason=failure) if failure and not made.is_done else made


def question(found: Plan, name: str) -> "Question":
    """The question that the verdict answers."""
    from simulations.analysis.result import Question  # imports scipy

    facts = ("settings", "methods", "seeds", "baseline", "target", "published", "command", "about")
    return Question(
        name=name,
        metric=metric.parse(found.metric),
        columns={title: metric.parse(text) for title, text in found.columns.items()},
        tuned=choices.of(found.tuning, found.tuned),
        **{fact: getattr(found, fact) for fact in facts},
    )


def check_same(before: Plan, words: Mapping[Pair, Words], tried: Mapping[str, Sequence[Words]]) -> None:
    """Raises ConfigError if a folder holds another comparison; values that only the analysis needs may change."""
    if before.asked == fingerprint(words, tried):
        return
    then = tried_before(before)
    extra = {word for each in then.values() for its in each for word in its}
    there = {(cell.setting, cell.method): set(cell.words) - extra for cell in before.cells}
    here = {pair: set(its) for pair, its in words.items()}
    if there.keys() != here.keys():
        shown = [
            _grid(set(before.settings), set(before.methods)),
            _grid(*(set(part) for part in zip(*here, strict=True))),
        ]
    elif pair := next((pair for pair in here if here[pair] != there[pair]), None):
        shown = [" ".join(sorted(a[pair] - b[pair])) or "nothing of this" for a, b in ((there, here), (here, there))]
    else:
        shown = [_tune(then), _tune(tried)]
    raise ConfigError(
        f"the folder holds another comparison: there {shown[0]}, here {shown[1]}",
        where=COMMAND_LINE,
        mend="choose another --name, or leave it out; in one folder only seeds, metric, baseline and target may change",
    )


def tried_before(before: Plan) -> dict[str, list[Words]]:
    """The candidates of each method in a plan; older plans have one list for all."""
    found = before.tuning or {"words": candidates.NOTHING}
    each = found["candidates"] if "candidates" in found else dict.fromkeys(before.methods, found["words"])
    return {method: [tuple(words) for words in its] for method, its in each.items()}


def _grid(settings: set[str], methods: set[str]) -> str:
    return f"{', '.join(sorted(methods))}" + (f" in {'; '.join(sorted(settings))}" if settings != {""} else "")


def _tune(tried: Mapping[str, Sequence[Words]]) -> str:
    lines = candidates.shown(tried)
    return f"--tune {' | '.join(lines)}" if lines else "no --tune"


def _lines(found: Plan) -> Iterator[str]:
    yield "# Written by `fedkd compare`, which reads it again. What it holds: docs/compare.md\n"
    yield f"schema: {SCHEMA}\n"
    rows = {"cells": [vars(cell) for cell in found.cells], "tuned": list(found.tuned)}
    for key, value in {**vars(found), **rows}.items():
        if key in rows and value:
            yield f"{key}:\n"
            yield from (f"- {strict_yaml.write(_plain(row))}\n" for row in value)
        else:
            yield f"{key}: {strict_yaml.write(_plain(value))}\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    return [_plain(below) for below in value] if isinstance(value, list | tuple) else value


def _plan(found: Mapping[str, Any]) -> Plan:
    facts = {key: value for key, value in found.items() if key != "schema"}
    for key in ("settings", "methods", "seeds", "tuned"):
        facts[key] = tuple(found[key])
    facts["cells"] = tuple(Cell(**row | {"words": tuple(row["words"])}) for row in found["cells"])
    strangers = [cell.folder for cell in facts["cells"] if not _PLACE.fullmatch(cell.folder)]
    if strangers:
        raise ValueError(f"{strangers[0]} is no place for a run")
    return Plan(**facts)
