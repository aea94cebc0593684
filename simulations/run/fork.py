"""A fork: a new run that starts from a commit of another one, under a changed configuration.

It takes the server's and the clients' states and the ledger up to that commit. run.json names its parent.
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.configuration import resolved
from fedkd.configuration.resolved import NAMES, Resolved
from fedkd.errors import CheckpointError, ConfigError, Mistake, refuse
from fedkd.record.ledger import PLAYED
from simulations.run import extension, progress, run_folder, runs
from simulations.run.options import Options
from simulations.run.run_folder import RunFolder

_WHERE = "command line"
# A state means the same under other values of these; of nodes, all keys below are meant.
_FREE = {"rounds", "quorum", "clients_per_round", "train", "strategy", "part", "evaluate", "border", "engine"}
_FREE |= {"checkpoint", "track", "data.root", "data.download"}
# Why others must stay, by the beginning of the key. The first that fits counts.
_STAY = {
    "strategy.name": "the state is that of the parent's algorithm",
    "strategy.client": "the clients' memory is that of the parent's client half",
    "evaluate.on": "it decides which samples the clients train on",
    "evaluate.validation": "it decides which samples the clients train on",
    "students": "the weights would not fit",
    "parts": "the clients' memory is that of the parent's parts",
    "privacy": "what clients have revealed cannot be taken back",
    "": "it decides which samples a client has, and its state belongs to them",
}


@dataclass(frozen=True)
class Origin:
    """The commit that a fork starts from."""

    place: Path  # the parent
    info: Mapping[str, Any]  # run.json of the parent
    round: int
    digest: str  # of the parent's configuration

    def bring(self, folder: RunFolder, digest: str) -> None:
        """Copy the commit and the ledger's rows up to it into a fork's folder; `digest` is of its configuration.

        Raises CheckpointError if the commit is damaged.
        """
        from fedkd.record import checkpoint

        source = self.place / "checkpoints" / checkpoint.folder_name(self.round)
        with run_folder.writing(folder.path):
            lengths, sha256 = checkpoint.adopt(
                source, folder.checkpoints, (self.digest, *extension.earlier(self.info)), digest
            )
            for name in PLAYED:
                with (self.place / name).open("rb") as rows:
                    (folder.path / name).write_bytes(rows.read(lengths.get(name, 0)))
        parent = {"run": self.info.get("run", self.place.name), "round": self.round, "sha256": sha256}
        parent |= {"parent": self.info["parent"]} if self.info.get("parent") else {}
        same = {key: self.info[key] for key in ("partition_sha256", "students", "proxy") if key in self.info}
        without = [entry for entry in self.info.get("without", ()) if entry["after"] <= self.round]
        folder.note(parent=parent, round=self.round, **same, **({"without": without} if without else {}))


def start(place: Path, overrides: Sequence[str], at: int | None, *, options: Options, **where: Any) -> dict[str, Any]:
    """Run a fork of the run in `place` in a new folder; returns its summary. Raises FedkdError.

    `where`: `runs`, `name`, `out` and `command` of `runs.start`.
    """
    with progress.make(options) as screen:
        screen.phase("loading PyTorch")
        configuration, origin = plan(place, overrides, at)
        from fedkd.state_values import Misfit

        try:
            return runs.start(configuration, **where, options=options, screen=screen, origin=origin)
        except CheckpointError as error:
            if isinstance(error.__cause__, Misfit):
                raise _explained(error, origin) from error
            raise


def plan(place: Path, overrides: Sequence[str], at: int | None) -> tuple[Resolved, Origin]:
    """The configuration and the origin of a fork of the run in `place`, at a round or at its newest commit.

    Raises ConfigError for what a fork cannot change, CheckpointError if the run has no commit of that round.
    """
    from fedkd.configuration import compose

    before = runs.same_configuration(place)  # also executes the user's files
    info = run_folder.info(place)
    if run_folder.is_on_devices(place):
        mend = "fork a run of this machine"
        raise ConfigError("the run's clients are devices, which keep their own states", where=str(place), mend=mend)
    number = _round(place, at)
    words = []
    for word in overrides:
        rounds = extension.parse([word], number, is_named=True)
        words.append(word if rounds is None else f"rounds={rounds}")
    after = compose.resolve([str(place / "config.yaml"), f"rounds={before.config.rounds}", *words])
    refuse(_mistakes(before, after))
    if after.config.rounds <= number:
        what = f"nothing is left to run: the fork starts from round {number}, and rounds={after.config.rounds}"
        raise ConfigError(what, where=_WHERE, mend="add rounds=+50, or choose an earlier round with --at")
    return after, Origin(place, info, number, before.digest())


def _explained(error: CheckpointError, origin: Origin) -> CheckpointError:
    """The error for a state that does not fit the fork's configuration."""
    what = f"the state of round {origin.round} does not fit the changed values: {error.__cause__}"
    mend = f"change other values, or start a new run: fedkd run {shlex.quote(str(origin.place / 'config.yaml'))}"
    return CheckpointError(what, where=str(origin.place), mend=mend)


def _round(place: Path, at: int | None) -> int:
    from fedkd.record import checkpoint

    rounds = [checkpoint.number(path) for path in checkpoint.committed(place / "checkpoints")]
    if not rounds:
        raise CheckpointError("the run has no commit yet", where=str(place), mend=f"fedkd resume {place}")
    if at is not None and at not in rounds:
        mend = f"it has those of rounds {', '.join(map(str, rounds))}; more with checkpoint.keep and checkpoint.every"
        raise CheckpointError(f"--at {at}: the run has no commit of that round", where=str(place), mend=mend)
    return rounds[-1] if at is None else at


def _mistakes(before: Resolved, after: Resolved) -> list[Mistake]:
    changed = [difference.key for difference in resolved.diff(before, after) if difference.key not in NAMES]
    stay = [key for key in changed if not _is_below(key, _FREE) or key in _STAY]
    return [
        Mistake(f"a fork cannot change {key}", _WHERE, f"{_why(key)}; for another start a new run: fedkd run")
        for key in stay
    ]


def _why(key: str) -> str:
    return next(why for start, why in _STAY.items() if not start or _is_below(key, (start,)))


def _is_below(key: str, nodes: Collection[str]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in nodes)
