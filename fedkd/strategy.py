"""Strategy: the server half of an algorithm, as hyper-parameters and transitions of a state that the run owns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from fedkd import off, renamed
from fedkd.engine import ClientId, Job, Reply
from fedkd.payload import Findings, Payload
from fedkd.problem import Problem
from fedkd.seeds import Stream

S = TypeVar("S")


@dataclass(frozen=True)
class Cohort:
    """The clients of one exchange of one round, in ascending order; iterates over their ids."""

    clients: tuple[ClientId, ...]
    round: int  # counts from 1
    exchange: int = 0  # counts from 0

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.clients)

    def __len__(self) -> int:
        return len(self.clients)


class Strategy(ABC, Generic[S]):
    """Transitions of a server state S: a frozen dataclass of tensors, numbers, text and dictionaries of these.

    A strategy that trains students keeps the Problem in its state: `field(metadata=state_values.CONSTANT)`.

    An instance holds only its frozen `config`, so resuming, repeating and parallel runs need no special care.
    """

    needs: ClassVar[frozenset[str]]  # kinds of knowledge it may take from clients
    gives: ClassVar[frozenset[str]]  # kinds of knowledge it may send to clients
    exchanges: ClassVar[int] = 1  # the most exchanges that a round may have
    # Plain literals: `fedkd list strategies` reads them from the source without an import.
    knowledge: ClassVar[str] = "weights"  # in a few words: what crosses
    proxy: ClassVar[str] = "no"  # whether it takes a public set: no, yes (it must), optional
    works_across_students: ClassVar[bool] = False  # whether clients may differ in architecture
    serves: ClassVar[str] = "global"  # its purpose: a global student, personal ones, or both
    paper: ClassVar[str] = ""
    pools_data: ClassVar[bool] = False  # whether client 0 holds all data: the centralised bound, no federation

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Hyper-parameters of the server half."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        renamed.refuse_old_names(cls)

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def notes(self, problem: Problem) -> Iterator[str]:
        """Sentences on settings that reduce this to another algorithm; by default one for each value marked `Off`."""
        return off.notes(self.config)

    @abstractmethod
    def init(self, problem: Problem, stream: Stream) -> S:
        """The state before the first round. Raises ConfigError if the problem does not fit the algorithm."""

    @abstractmethod
    def plan(self, state: S, cohort: Cohort) -> Mapping[ClientId, Payload]:
        """The payload of each client of the cohort; equal payloads are one object."""

    def set_by_last_round(self) -> str:
        """The value that lets the last round of a run decide earlier ones, e.g. `strategy.drop_period=null`.

        Empty: none. A half that reads `problem.rounds` must name one: such a run cannot be made longer as it is.
        """
        return ""

    def num_exchanges(self, round: int) -> int:
        """How many exchanges the round `round` has; a configuration may need fewer than `exchanges`."""
        return self.exchanges

    def expected_kinds(self, cohort: Cohort) -> frozenset[str]:
        """The kinds of knowledge that each reply of this exchange must bring, neither fewer nor more."""
        return self.needs

    def inspect(self, state: S, job: Job, reply: Reply) -> None:
        """Check what only the algorithm can judge in a reply that passed the border. Raises `border.Refused`."""

    @abstractmethod
    def aggregate(self, state: S, replies: Sequence[Reply], stream: Stream) -> tuple[S, Findings]:
        """The next state, and findings for the ledger. Replies are admitted and in ascending order of client."""

    @abstractmethod
    def evaluation_payload(self, state: S, client: ClientId | None) -> Payload | None:
        """What `client` classifies with now: the `weights` of its student; the entries that it keeps are added.

        Other kinds are for the client half's `predictor`. `client=None` asks for the global student. Returns None if
        the server has none: each client then uses what it keeps.
        """
