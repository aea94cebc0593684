"""Standing: which clients were refused, round after round, and which are left out for it. Part of a RunState.

A client that is refused for its values again and again wastes the work of every round and puts it at risk. After
`border.quarantine_after` such refusals in a row it is left out, for `border.quarantine_rounds` rounds or for the rest.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedkd.config import BorderConfig
from fedkd.engine import ClientId, Failure
from fedkd.errors import RunError

MOST_UNSETTLED = 3  # rounds in a row
COUNTED = frozenset({"range", "non_finite"})  # causes: the values themselves


@dataclass(frozen=True)
class Absence:
    """The rounds in which a client gets no jobs."""

    first: int
    last: int | None  # None: to the end

    def covers(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)


@dataclass(frozen=True)
class Standing:
    """Empty in a run in which nobody was refused."""

    refusals: Mapping[ClientId, int] = field(default_factory=dict)  # in a row, for COUNTED causes
    absences: Mapping[ClientId, Absence] = field(default_factory=dict)
    unsettled: int = 0  # rounds in a row that gave no finite state

    def absent(self, number: int) -> frozenset[ClientId]:
        """Who is left out of a round."""
        return frozenset(client for client, absence in self.absences.items() if absence.covers(number))

    def without(self, clients: Iterable[ClientId], first: int) -> "Standing":
        """With some left out from a round on, for good."""
        return replace(self, absences={**self.absences, **{client: Absence(first, None) for client in clients}})

    def settled(self) -> "Standing":
        """After a round that gave a finite state."""
        return replace(self, unsettled=0) if self.unsettled else self

    def unsettled_once_more(self, number: int, failures: Sequence[Failure]) -> "Standing":
        """After a round that gave none. Raises RunError after MOST_UNSETTLED in a row: training has diverged."""
        if self.unsettled + 1 < MOST_UNSETTLED:
            return replace(self, unsettled=self.unsettled + 1)
        what = next(f.what for f in failures if f.cause == "unsettled")
        raise RunError(
            f"round {number}: {MOST_UNSETTLED} rounds in a row gave no finite state: training has diverged, "
            f"or many clients lie ({what})",
            failures=tuple(failures),
        )

    def after(
        self,
        number: int,
        failures: Collection[Failure],
        replied: Collection[ClientId],
        config: BorderConfig,
        clients: int,
        quorum: int,
    ) -> "Standing":
        """After a round: who was refused once more, and who is left out for it. Enough clients stay for a round."""
        refused = {f.client for f in failures if f.task == "train" and f.cause in COUNTED}
        counts = {client: n for client, n in self.refusals.items() if client not in replied}
        counts |= {client: self.refusals.get(client, 0) + 1 for client in sorted(refused)}
        last = None if config.quarantine_rounds is None else number + config.quarantine_rounds
        due = [client for client, n in counts.items() if config.quarantine_after and n >= config.quarantine_after]
        free = clients - max(1, quorum) - len(self.absent(number + 1))
        out = {client: Absence(number + 1, last) for client in due[: max(0, free)]}
        counts = {client: n for client, n in counts.items() if client not in out}
        return replace(self, refusals=counts, absences={**self.absences, **out})


def newly(before: Standing, after: Standing) -> Iterator[tuple[ClientId, Absence]]:
    """Who is left out after a round that was not before it."""
    for client, absence in after.absences.items():
        if before.absences.get(client) != absence:
            yield client, absence
