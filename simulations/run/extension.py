"""A longer run: `fedkd resume RUN rounds=+50` changes the number of rounds, and nothing else, of an existing run.

run.json keeps each change under `extended`: the commits of before have the old configuration's hash.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.configuration.resolved import Resolved
from fedkd.errors import CheckpointError, ConfigError
from fedkd.record.ledger import PLAN
from simulations.run.run_folder import RunFolder

_KEY = "rounds="
_NUMBER = re.compile(r"(\+?)(0*[1-9][0-9]{0,8})")
_LINE = re.compile(r"^rounds: \d+ *(?=#|$)", re.MULTILINE)
_WHERE = "command line"


@dataclass(frozen=True)
class Extension:
    """A change of the number of rounds: `last` is the old one, `to` the new one."""

    last: int
    to: int
    config: str  # the old configuration's hash
    commits_to: int  # the last round whose commit still counts

    def apply(self, folder: RunFolder, longer: Resolved, at: str) -> None:
        """Write run.json, then config.yaml. After a kill in between, `current` and the next resume complete it."""
        entry = {"from": self.last, "to": self.to, "at": at, "config": self.config, "commits_to": self.commits_to}
        extended = [*folder.info().get("extended", ()), entry]
        folder.note(extended=extended, num_rounds=self.to, config=longer.digest(), state="stopped")
        write(folder, longer)

    @property
    def replayed(self) -> str:
        """A sentence if rounds run again, else empty."""
        if self.commits_to == self.last:
            return ""
        return (
            f"round {self.last} was evaluated only because it was the last, so the rounds after the newest commit "
            "before it run again"
        )


def parse(overrides: Sequence[str], now: int, *, is_named: bool) -> int | None:
    """The number of rounds that `rounds=80` or `rounds=+50` asks for; None if they ask for anything else, or nothing.

    `+` counts from `now`. Raises ConfigError for what is no number of rounds, and if the user has not named the run.
    """
    if len(overrides) != 1 or not overrides[0].startswith(_KEY):
        return None
    asked = _NUMBER.fullmatch(overrides[0].removeprefix(_KEY))
    if asked is None:
        mend = "write rounds=+50 for 50 more, or rounds=80 for 80 in all"
        raise ConfigError(f"'{overrides[0]}' gives no number of rounds", where=_WHERE, mend=mend)
    if not is_named:
        mend = f"name the run: fedkd resume RUN {overrides[0]}"
        raise ConfigError("which run is to be longer?", where=_WHERE, mend=mend)
    return now * bool(asked[1]) + int(asked[2])


def plan(place: Path, resolved: Resolved, rounds: int, *, anyway: bool) -> Extension | None:
    """The change that makes a run end after `rounds`; None if it does already.

    Raises CheckpointError if it would be shorter, if it is part of a comparison and, without `anyway`, if it could not
    equal a run that had these rounds from the start.
    """
    config = resolved.config
    now, evaluate = config.rounds, config.evaluate
    if rounds == now:
        return None
    if rounds < now:
        what = f"a run cannot become shorter: it has {now} rounds, rounds={rounds} are fewer"
        raise CheckpointError(what, where=str(place), mend="write rounds=+50 for 50 more")
    if (place.parent.parent / PLAN).exists():
        what = "the run is part of a comparison, whose other runs would stay shorter"
        mend = f"compare again with rounds={rounds}"
        raise CheckpointError(what, where=str(place), mend=mend)
    from simulations import assemble  # imports torch

    strategy, _ = assemble.halves(config.strategy)
    of_train = "train.schedule=cosine" if config.train.schedule == "cosine" else ""
    if not anyway and (key := strategy.set_by_last_round() or of_train):
        raise CheckpointError(
            f"with {key} the number of rounds decides what happens in each, so a run of {rounds} rounds is another "
            f"from the start than one of {now}",
            where=str(place),
            mend="start a new run, or add --anyway: rounds done stay as they are, later ones follow the new number",
        )
    if not _LINE.search((place / "config.yaml").read_text(encoding="utf-8")):
        mend = f"write it on a line of its own, as in: rounds: {now}"
        raise CheckpointError("config.yaml has no line for rounds", where=str(place), mend=mend)
    is_due = now % evaluate.every == 0 == now % evaluate.pooled_every
    return Extension(now, rounds, resolved.digest(), now if is_due else now - 1)


def lengthened(resolved: Resolved, rounds: int) -> Resolved:
    return replace(resolved, config=replace(resolved.config, rounds=rounds))


def write(folder: RunFolder, resolved: Resolved) -> None:
    """Bring the number of rounds in config.yaml up to date; all other lines stay."""
    text = (folder.path / "config.yaml").read_text(encoding="utf-8")
    line = f"rounds: {resolved.config.rounds}"
    folder.write_text("config.yaml", _LINE.sub(lambda match: f"{line} ".ljust(len(match[0])), text, count=1))


def current(resolved: Resolved, info: Mapping[str, Any]) -> Resolved:
    """The configuration of config.yaml or, if a kill has left the file one change behind, the one of run.json."""
    entries = info.get("extended", ())
    is_behind = bool(entries) and entries[-1]["config"] == resolved.digest()
    return lengthened(resolved, entries[-1]["to"]) if is_behind else resolved


def earlier(info: Mapping[str, Any]) -> dict[str, int]:
    """The hash of each shorter configuration that the run had, and the last round whose commit under it counts."""
    return {entry["config"]: entry["commits_to"] for entry in info.get("extended", ())}
