"""Clients that a user has left out with `fedkd resume --without`.

run.json keeps them: a later resume leaves out the same clients from the same rounds, whatever its checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import ConfigError, FolderError
from simulations.run.run_folder import RunFolder

if TYPE_CHECKING:  # imports torch, and mistakes on the command line are reported earlier
    from fedkd.experiment import RunState

_WHERE = "command line"


@dataclass(frozen=True)
class Exclusion:
    """What a resume asks for: clients to leave out from now on, and the round to go back to first."""

    clients: Sequence[int] = ()
    back_to: int | None = None  # None: the newest commit

    def check(self, info: Mapping[str, Any], place: Path, quorum: int = 1) -> None:
        """Raises ConfigError for clients or rounds that the run does not have, FolderError if it is done.

        Raises ConfigError too if the remaining clients cannot reach the quorum: an exclusion is permanent.
        """
        number = int(info.get("num_clients", 0))
        for client in self.clients:
            if not 0 <= client < number:
                mend = f"its clients are 0 to {number - 1}"
                raise ConfigError(f"--without {client}: the run has no such client", where=_WHERE, mend=mend)
        if self.back_to is not None and not self.clients:
            mend = "add --without CLIENT: otherwise the same rounds would only run again"
            raise ConfigError(f"--from {self.back_to} without --without", where=_WHERE, mend=mend)
        if self.back_to is not None and self.back_to < 0:
            raise ConfigError(f"--from {self.back_to} is not a round", where=_WHERE, mend="--from 0 is the beginning")
        if self.clients and info.get("state") == "done":
            mend = f"fedkd show {place}"
            raise FolderError("the run is done, so no client can be left out", where=str(place), mend=mend)
        left = number - len({*self.clients, *(entry["client"] for entry in info.get("without", ()))})
        if self.clients and left < max(1, quorum):
            what = f"--without leaves {left} of {number} clients, and a round needs {max(1, quorum)}"
            raise ConfigError(what, where=_WHERE, mend="leave out fewer clients")

    def go_back(self, folder: RunFolder) -> None:
        """Forget the commits of later rounds."""
        from fedkd.record import checkpoint

        if self.back_to is not None:
            checkpoint.forget(folder.checkpoints, after=self.back_to)

    def apply(self, folder: RunFolder, state: "RunState", warn: Callable[[str], None]) -> "RunState":
        """The state without the excluded clients: earlier ones, and new ones from the next round on, which it notes."""
        clients = dict.fromkeys(self.clients)
        noted = list(folder.info().get("without", ()))
        earlier = {entry["client"] for entry in noted if entry["after"] <= state.round}
        noted = [entry for entry in noted if entry["client"] not in {*clients} - earlier]
        noted += [{"client": client, "after": state.round} for client in clients if client not in earlier]
        if clients:
            folder.note(without=noted)
        for client in clients:
            warn(f"client {client} is left out from round {state.round + 1} on: --without")
        for entry in noted:
            state = replace(state, standing=state.standing.without([entry["client"]], entry["after"] + 1))
        return state


NOBODY = Exclusion()


def report(before: "RunState", after: "RunState", patience: int, warn: Callable[[str], None]) -> None:
    """Warn after a round about clients that are now left out, and if the round changed nothing."""
    from fedkd import standing

    for client, absence in standing.newly(before.standing, after.standing):
        until = "on" if absence.last is None else f"to {absence.last}"
        what = f"client {client} is left out from round {absence.first} {until}"
        warn(f"{what}: {patience} replies in a row were refused for their values")
    if after.standing.unsettled > before.standing.unsettled:
        warn(f"round {after.round} left the state as it was: its replies gave no finite state")
