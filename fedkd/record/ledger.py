"""Ledger: the append-only record of a run, one JSON row per line. Free of torch, so that reports read it at once.

`metrics.jsonl` (one row per round) and `clients.jsonl` (one row per round and client) hold no machine facts: the same
configuration gives the same bytes. `timings.jsonl` has their wall times, `events.jsonl` the events of the process.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedkd import strict_json
from fedkd.errors import CheckpointError, ConfigError, FolderError

SCHEMA = 1  # of the rows; recorded in run.json
PLAYED = ("metrics.jsonl", "clients.jsonl", "timings.jsonl")  # rows of rounds: a resume cuts them to the last commit
PLAN = "plan.yaml"  # of a comparison, whose runs are in a folder beside it
_RUNS = ("run.json", "*/run.json", "runs/*/run.json", "*/runs/*/run.json")  # of a run, a folder of runs, comparisons
EVENTS = "events.jsonl"  # history: a resume adds to it

_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)  # one for all: rows are many

Row = dict[str, Any]


class Ledger:
    """The files of a run folder, open for appending. Each row is flushed: a killed process loses none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        for name in (*PLAYED, EVENTS):
            _drop_half_line(folder / name)
            self._files[name] = (folder / name).open("ab")

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows to one file. Raises OSError if the disk is full."""
        self._files[name].write(b"".join(encode(row) for row in rows))
        self._files[name].flush()

    def sync(self) -> dict[str, int]:
        """Force everything to the disk. Returns the lengths that a checkpoint records."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return self.lengths()

    def lengths(self) -> dict[str, int]:
        """Bytes of the files that belong to rounds."""
        return {name: self._files[name].tell() for name in PLAYED}

    def cut(self, lengths: Mapping[str, int]) -> None:
        """Cut the files to the lengths of a commit. Raises CheckpointError if a file is shorter."""
        for name in PLAYED:
            wanted, actual = lengths.get(name, 0), self._files[name].seek(0, os.SEEK_END)
            if actual < wanted:
                raise CheckpointError(
                    f"{name} has {actual} bytes, the checkpoint was committed after {wanted}",
                    where=str(self.folder),
                    mend="restore the file from a copy, or start the run again from config.yaml",
                )
            self._files[name].truncate(wanted)
            self._files[name].seek(wanted)

    def close(self) -> None:
        """Close the files; if the disk is full only now, unsynced rows are lost."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()


def encode(row: Mapping[str, Any]) -> bytes:
    """One line: floats as the shortest exact text, non-finite ones as null, half a surrogate pair as its code."""
    return f"{_JSON.encode(_finite(row))}\n".encode(errors="backslashreplace")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


@dataclass(frozen=True)
class Records:
    """The content of a run folder. Rows are as written; `tidy` makes flat ones."""

    folder: Path
    run: Row  # run.json
    metrics: list[Row]
    clients: list[Row]
    timings: list[Row]
    events: list[Row]


def read(folder: Path | str) -> Records:
    """The records of a run so far, also while it runs. Raises FolderError if there is no run."""
    path = Path(folder)
    run = info(path)
    metrics, clients, timings, events = (rows(path / name) for name in (*PLAYED, EVENTS))
    return Records(path, run, metrics, clients, timings, events)


def info(folder: Path) -> Row:
    """run.json, completed for older versions. Raises FolderError if there is no run."""
    try:
        run = strict_json.mapping((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        what = f"{folder} is not a run folder: run.json is missing or unreadable"
        raise FolderError(what, mend="fedkd list runs shows them") from None
    if "halves" not in run:  # its `strategy` is the server half, which FedProx shares with FedAvg
        with suppress(FolderError):
            run["strategy"] = configuration(folder).get("strategy.setting", run.get("strategy"))
    return run


def configuration(folder: Path) -> Row:
    """config.yaml of a run: dotted key -> value, `strategy.setting` among them. Raises FolderError."""
    from fedkd import strict_yaml  # late: takes 0.2 s, which a device saves
    from fedkd.configuration import compose

    try:
        written: Any = strict_yaml.read((folder / "config.yaml").read_text(encoding="utf-8"), str(folder)).plain
        values = flat(written)
    except (OSError, ValueError, AttributeError, ConfigError) as error:
        what = error.what if isinstance(error, ConfigError) else str(error)
        raise FolderError(f"config.yaml is unreadable: {what}", where=str(folder)) from error
    strategy = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("strategy.")}
    return {**values, "strategy.setting": compose.setting_of(strategy, strategy.get("setting") or "")}


def rows(path: Path) -> list[Row]:
    """The rows of one file, without a half-written last line. Raises FolderError for any other bad line."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            parsed.append(_renamed(strict_json.mapping(line)))
        except ValueError:
            raise FolderError(f"line {number} is damaged", where=str(path), mend="restore it from a copy") from None
    return parsed


def _renamed(row: Row) -> Row:
    """A row with current names: older versions called `local_accuracy` `forgetting`, which it does not measure."""
    if not isinstance(row.get("forgetting"), dict):
        return row
    names = {"inside": "in", "outside": "out"}
    old = {names.get(name, name): value for name, value in row["forgetting"].items()}
    return {key: value for key, value in row.items() if key != "forgetting"} | {"local_accuracy": old}


def load_runs(folder: Path | str, table: str = "metrics") -> list[Row]:
    """Tidy rows of one run, or of all runs below a folder, including those of comparisons, without trials of --tune.

    Columns: `run, comparison, strategy, seed, state`, then those of the row, dotted, then the configuration's:
    `config.partition.alpha`. `table` is metrics, clients, timings or events. Ready for
    `pandas.DataFrame(load_runs("runs"))`. Raises FolderError if there is no run.
    """
    path = Path(folder)
    folders = {place.parent for pattern in _RUNS for place in path.glob(pattern) if ".broken-" not in place.parent.name}
    if not folders:
        raise FolderError(f"there is no run in {path}", mend="give a run, a folder of runs, or a comparison")
    return [row for place in sorted(folders) for row in tidy(read(place), table)]


def tidy(records: Records, table: str = "metrics") -> list[Row]:
    """Flat rows of one table of one run, each with the columns that tell runs apart."""
    above = records.folder.absolute().parent
    head = {"run": records.folder.name, "comparison": above.parent.name if (above.parent / PLAN).exists() else None}
    head |= {key: records.run.get(key) for key in ("strategy", "seed", "state")}
    config: Row = {}
    with suppress(FolderError):  # rows are useful without the configuration, too
        config = {f"config.{key}": value for key, value in configuration(records.folder).items()}
    return [head | flat(row) | config for row in getattr(records, table)]


def flat(row: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested keys joined by dots: `accuracy.clients.mean`. Lists stay."""
    leaves: Row = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _drop_half_line(path: Path) -> None:
    """Remove the half row that a killed process may leave, so that the next row starts on its own line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
