"""Weights & Biases. Package: the extra `wandb`. Without the user's key it writes into `wandb/` of the run folder."""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at the import

import wandb

from fedkd.configuration.resolved import Resolved
from fedkd.record import ledger
from simulations.run import tracking
from simulations.run.run_folder import RunFolder
from simulations.run.tensorboard import scalars

_EXIT_CODES = {"done": 0}


def make(resolved: Resolved, folder: RunFolder) -> "Wandb":
    return Wandb(resolved, folder)


class Wandb:
    """One run at W&B, or in a folder that `wandb sync` sends there."""

    def __init__(self, resolved: Resolved, folder: RunFolder) -> None:
        self.resolved, self.folder = resolved, folder
        self._run: Any = None

    def restart(self, rows: Sequence[ledger.Row], timings: Sequence[ledger.Row]) -> None:
        """W&B continues after its last step. A folder cannot be continued, so a resume writes all of it again."""
        id_ = tracking.identity(self.folder, "wandb") or uuid.uuid4().hex[:8]
        tracking.keep_identity(self.folder, "wandb", id_)
        for old in (self.folder.path / "wandb").glob(f"offline-run-*-{id_}"):
            shutil.rmtree(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedkd"),
            dir=str(self.folder.path),
            mode=_mode(),  # type: ignore[arg-type]
            id=id_,
            resume="allow",
            name=self.folder.id,
            config=self.resolved.values(),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,  # the command line may hold secrets
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        at = {row["round"]: row for row in timings}
        for row in rows:
            if row["round"] >= self._run.starting_step:
                self.write(row, at.get(row["round"], {}))

    def write(self, row: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """All numbers of a round, under TensorBoard's names; the step is the round."""
        self._run.log(dict(scalars(row, timings)), step=row["round"], commit=True)

    def finish(self, totals: Mapping[str, Any]) -> None:
        """The summary, dotted, in place of the last round's values."""
        self._run.summary.update({f"summary.{key}": value for key, value in ledger.flat(totals).items()})
        self._run.finish(exit_code=_EXIT_CODES.get(totals["status"], 1))


def _mode() -> str:
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if wandb.login(prompt=False, verify=False) else "offline"
