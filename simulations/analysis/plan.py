"""plan.yaml: the request of a comparison and the places of its runs. Written atomically; free of torch."""

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
from simulations.analysis.grid import COMMAND_LINE, Overrides, Pair
from simulations.analysis.run_record import RunRecord
from simulations.run import provenance, run_folder
from simulations.run.run_folder import RunFolder

if TYPE_CHECKING:
    from simulations.analysis.result import Question

FILE = "plan.yaml"
SCHEMA = 1
_BEFORE_PLAN = {"run.lock", f".{FILE}.new"}  # files that exist before the plan
_AFRESH = "choose another --name; the runs in it stay readable"
_LONGEST_SLUG = 30
_FOLDER = re.compile(r"(runs|tuning)/[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison; `folder` is relative to that of the comparison."""

    setting: str
    method: str
    seed: int
    overrides: Overrides  # without the seed
    digest: str  # of its configuration
    folder: str

    @property
    def name(self) -> str:
        """`fedgen, alpha 0.1, seed 3`."""
        return ", ".join(part for part in (self.method, self.setting, f"seed {self.seed}") if part)


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A comparison as plan.yaml describes it; field names are its keys."""

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
    tuned: tuple[Mapping[str, Any], ...] = ()  # per setting and method: candidates, their values, the chosen one
    failed: Mapping[str, str] = field(default_factory=dict)  # folder -> reason, for cells that failed last time

    def write(self, folder: RunFolder) -> None:
        """Raises FolderError, e.g. if the disk is full."""
        folder.write_text(FILE, "".join(_lines(self)))


def make(
    grid: Grid, asked: str, command: str, before: ComparisonPlan | None = None
) -> tuple[ComparisonPlan, dict[Cell, Resolved]]:
    """The plan for a grid, and the configuration of each cell; keeps the seeds of the earlier plan.

    `asked`: the fingerprint of the request.
    """
    seeds = tuple(sorted({*grid.seeds, *(before.seeds if before else ())}))
    configurations = cells(grid, seeds)
    plan = ComparisonPlan(
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
        cells=tuple(configurations),
    )
    return plan, configurations


def cells(grid: Grid, seeds: Sequence[int], below: str = "runs") -> dict[Cell, Resolved]:
    """A cell for each pair and seed; seed after seed, so that early results can be compared."""
    configurations = {}
    for seed, pair in itertools.product(seeds, grid.overrides):
        resolved = grid.configuration(pair, seed)
        digest = resolved.digest()
        parts = [_slug(pair[1]), _slug(pair[0]), f"s{seed}", digest[:8], provenance.decisive()[:6]]
        folder = f"{below}/{'-'.join(filter(None, parts))}"
        configurations[Cell(*pair, seed, grid.overrides[pair], digest, folder)] = resolved
    return configurations


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", label)[:_LONGEST_SLUG].strip("-.").lower()


def fingerprint(overrides: Mapping[Pair, Overrides], tried: Mapping[str, Sequence[Overrides]]) -> str:
    """SHA-256 of the request without the seeds: independent of the order of overrides, settings and methods.

    `tried`: the candidates of each method; hashed once if all methods have the same.
    """
    pairs = sorted([*pair, sorted(set(own))] for pair, own in overrides.items())
    first = next(iter(tried.values()), candidates.NOTHING)
    text = json.dumps([pairs, first if candidates.alike(tried) else dict(sorted(tried.items()))])
    return hashlib.sha256(text.encode()).hexdigest()


def load(folder: Path) -> ComparisonPlan | None:
    """The plan in a folder; None if there is nothing yet. Raises FolderError for an unreadable plan."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - _BEFORE_PLAN):
            mend = "choose another --name or --out"
            raise FolderError(f"{folder} exists and is no comparison", mend=mend) from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"cannot be read: {error}", where=str(path), mend=_AFRESH) from error
    try:
        content: Any = strict_yaml.read(text, str(path)).plain
        if content["schema"] != SCHEMA:
            problem = f"another version wrote the comparison (schema {content['schema']}, here {SCHEMA})"
            raise FolderError(problem, where=str(path), mend=_AFRESH)
        return _plan(content)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"plan.yaml is damaged: {error}", where=str(path), mend=_AFRESH) from error


def is_done(folder: Path, digest: str) -> bool:
    """Whether a run with exactly this configuration is done."""
    try:
        info = run_folder.info(folder)
        claims_done = info.get("state") == "done" and info.get("config") == digest
        return claims_done and len(ledger.rows(folder / "metrics.jsonl")) == info.get("num_rounds")
    except (FedkdError, OSError):
        return False


def read(folder: Path) -> "tuple[Question, list[RunRecord]]":
    """The question of a comparison folder, and its runs in any state. Raises FolderError."""
    plan = load(folder)
    if plan is None:
        raise FolderError(f"there is no comparison in {folder}", mend="fedkd compare makes one")
    return question(plan, folder.name), runs(plan, folder)


def runs(plan: ComparisonPlan, folder: Path) -> list[RunRecord]:
    """The records of a plan's runs."""
    return [_record(cell, folder, plan.failed.get(cell.folder, "")) for cell in plan.cells]


def _record(cell: Cell, folder: Path, failure: str) -> RunRecord:
    record = run_record.read(cell.setting, cell.method, cell.seed, folder / cell.folder, cell.overrides)
    return replace(record, state="failed", reason=failure) if failure and not record.is_done else record


def question(plan: ComparisonPlan, name: str) -> "Question":
    """The question that the verdict answers."""
    from simulations.analysis.result import Question  # imports scipy

    facts = ("settings", "methods", "seeds", "baseline", "target", "published", "command", "about")
    return Question(
        name=name,
        metric=metric.parse(plan.metric),
        columns={title: metric.parse(text) for title, text in plan.columns.items()},
        tuned=choices.from_plan(plan.tuning, plan.tuned),
        **{fact: getattr(plan, fact) for fact in facts},
    )


def check_same(
    before: ComparisonPlan, overrides: Mapping[Pair, Overrides], tried: Mapping[str, Sequence[Overrides]]
) -> None:
    """Raises ConfigError if a folder holds another comparison; values that only the analysis needs may change."""
    if before.asked == fingerprint(overrides, tried):
        return
    earlier = tried_before(before)
    tuned = {override for candidates in earlier.values() for own in candidates for override in own}
    there = {(cell.setting, cell.method): set(cell.overrides) - tuned for cell in before.cells}
    here = {pair: set(own) for pair, own in overrides.items()}
    if there.keys() != here.keys():
        shown = [
            _grid(set(before.settings), set(before.methods)),
            _grid(*(set(part) for part in zip(*here, strict=True))),
        ]
    elif pair := next((pair for pair in here if here[pair] != there[pair]), None):
        shown = [" ".join(sorted(a[pair] - b[pair])) or "nothing of this" for a, b in ((there, here), (here, there))]
    else:
        shown = [_tune(earlier), _tune(tried)]
    raise ConfigError(
        f"the folder holds another comparison: there {shown[0]}, here {shown[1]}",
        where=COMMAND_LINE,
        mend="choose another --name, or leave it out; in one folder only seeds, metric, baseline and target may change",
    )


def tried_before(before: ComparisonPlan) -> dict[str, list[Overrides]]:
    """The candidates of each method in a plan; older plans have one list for all."""
    tuning = before.tuning or {"words": candidates.NOTHING}
    tried = tuning["candidates"] if "candidates" in tuning else dict.fromkeys(before.methods, tuning["words"])
    return {method: list(map(tuple, own)) for method, own in tried.items()}


def _grid(settings: set[str], methods: set[str]) -> str:
    return f"{', '.join(sorted(methods))}" + (f" in {'; '.join(sorted(settings))}" if settings != {""} else "")


def _tune(tried: Mapping[str, Sequence[Overrides]]) -> str:
    lines = candidates.shown(tried)
    return f"--tune {' | '.join(lines)}" if lines else "no --tune"


def _lines(plan: ComparisonPlan) -> Iterator[str]:
    yield "# Written by `fedkd compare`, which reads it again. What it holds: docs/compare.md\n"
    yield f"schema: {SCHEMA}\n"
    rows = {"cells": [_row(cell) for cell in plan.cells], "tuned": list(plan.tuned)}
    for key, value in {**vars(plan), **rows}.items():
        if key in rows and value:
            yield f"{key}:\n"
            yield from (f"- {strict_yaml.write(_plain(row))}\n" for row in value)
        else:
            yield f"{key}: {strict_yaml.write(_plain(value))}\n"


def _row(cell: Cell) -> dict[str, Any]:
    return {"words" if key == "overrides" else key: value for key, value in vars(cell).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    return [_plain(below) for below in value] if isinstance(value, list | tuple) else value


def _plan(content: Mapping[str, Any]) -> ComparisonPlan:
    facts = {key: value for key, value in content.items() if key != "schema"}
    for key in ("settings", "methods", "seeds", "tuned"):
        facts[key] = tuple(content[key])
    facts["cells"] = tuple(_cell(**row) for row in content["cells"])
    return ComparisonPlan(**facts)


def _cell(words: Sequence[str], folder: str, **facts: Any) -> Cell:
    if not _FOLDER.fullmatch(folder):
        raise ValueError(f"{folder} is no folder for a run")
    return Cell(overrides=tuple(words), folder=folder, **facts)
