"""A run in a comparison: its records, its place in the grid, and why it may not count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedkd import strict_json
from fedkd.errors import FedkdError
from fedkd.record import ledger
from fedkd.record.ledger import Row
from simulations.run import run_folder


@dataclass(frozen=True)
class RunRecord:
    """One run of a comparison. `setting`, `method` and `seed` place it in the grid; `reason`: why it does not count.

    Rows are the ledger's: fractions, bytes, seconds. A run without a folder has a reason and no rows.
    """

    setting: str
    method: str
    seed: int
    folder: Path
    state: str = "missing"  # missing, running, stopped, failed, done
    reason: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)  # run.json
    partition: Mapping[str, Any] = field(default_factory=dict)  # partition.json
    config: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value, of config.yaml
    rows: Sequence[Row] = ()  # metrics.jsonl
    timings: Sequence[Row] = ()
    clients: Sequence[Row] = ()  # clients.jsonl
    overrides: tuple[str, ...] = ()  # its overrides, without the grid's seed

    @property
    def is_done(self) -> bool:
        """Whether it counts: it has reached its last round."""
        return self.state == "done" and not self.reason

    @property
    def untrained(self) -> int:
        """How many clients have not taken part; 0 if clients are evaluated with the global student."""
        counts = [row["accuracy"]["trained"]["count"] for row in self.rows if "trained" in row["accuracy"]]
        is_own = self.info.get("client_student") == "own"
        return int(self.info["num_clients"]) - int(counts[-1]) if counts and is_own else 0

    @property
    def name(self) -> str:
        """`fedgen, alpha 0.1, seed 3`."""
        return ", ".join(part for part in (self.method, self.setting, f"seed {self.seed}") if part)

    @cached_property
    def pairing(self) -> Mapping[str, Any]:
        """What paired runs must share: split, first weights by architecture, cohorts, order of batches."""
        hashes = {key: self.info.get(key) for key in ("partition_sha256", "initial_sha256", "batches_sha256")}
        return {**hashes, "cohorts": [row["cohort"] for row in self.rows]}


def read(setting: str, method: str, seed: int, folder: Path, overrides: tuple[str, ...] = ()) -> RunRecord:
    """The record of a run folder in any state. An unreadable folder gives a `reason`, never an error."""
    record = RunRecord(setting, method, seed, folder, overrides=overrides)
    if not (folder / "run.json").exists():
        return replace(record, reason="not started yet")
    try:
        state, records = run_folder.state(folder), ledger.read(folder)
        partition = strict_json.mapping((folder / "partition.json").read_bytes())
        config = ledger.configuration(folder)
    except (FedkdError, OSError, ValueError) as error:
        cause = error.what if isinstance(error, FedkdError) else str(error)
        return replace(record, state="failed", reason=f"cannot be read: {cause}")
    schemas = {key: records.run.get(key) for key in run_folder.SCHEMAS}
    reason = "" if state == "done" else str(records.run.get("error") or f"{state} after round {len(records.metrics)}")
    if schemas != run_folder.SCHEMAS:
        reason = f"written by another version (schema {schemas}, here {run_folder.SCHEMAS})"
    return replace(
        record,
        state=state,
        reason=reason,
        info=records.run,
        partition=partition,
        config=config,
        rows=records.metrics,
        timings=records.timings,
        clients=records.clients,
    )
