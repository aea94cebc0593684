"""Standing: how often each client was refused in a row, and which clients are excluded. Part of a RunState.

Repeated refusals of a client's values waste the work of every round and put it at risk. After
`border.quarantine_after` such refusals in a row, the client is excluded for `border.quarantine_rounds` rounds, or for
the rest of the run.
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
    last: int | None  # None: to the end of the run

    def covers(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)


@dataclass(frozen=True)
class Standing:
    """Refusals and absences; empty in a run without refusals."""

    refusals: Mapping[ClientId, int] = field(default_factory=dict)  # in a row, for COUNTED causes
    absences: Mapping[ClientId, Absence] = field(default_factory=dict)
    unsettled: int = 0  # rounds in a row that gave no finite state

    def absent(self, number: int) -> frozenset[ClientId]:
        """The clients excluded from a round."""
        return frozenset(client for client, absence in self.absences.items() if absence.covers(number))

    def without(self, clients: Iterable[ClientId], first: int) -> "Standing":
        """The standing with some clients excluded from round `first` to the end."""
        return replace(self, absences={**self.absences, **{client: Absence(first, None) for client in clients}})

    def settled(self) -> "Standing":
        """The standing after a round that gave a finite state."""
        return replace(self, unsettled=0) if self.unsettled else self

    def unsettled_once_more(self, number: int, failures: Sequence[Failure]) -> "Standing":
        """The standing after a round without one. Raises RunError after MOST_UNSETTLED in a row: it diverged."""
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
        """The standing after a round: counts refusals and excludes clients, but leaves enough for a round."""
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
    """The clients that this round has excluded, with their absence."""
    for client, absence in after.absences.items():
        if before.absences.get(client) != absence:
            yield client, absence
