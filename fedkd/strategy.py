"""Strategy: the server half of an algorithm, as hyper-parameters and transitions of a state that it does not own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from fedkd.engine import ClientId, Reply
from fedkd.payload import Numbers, Payload
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

    An instance holds its frozen `config` and nothing else, so that resuming, repeating and parallel runs need no care.
    """

    needs: ClassVar[frozenset[str]]  # kinds of knowledge it takes from clients
    gives: ClassVar[frozenset[str]]  # kinds of knowledge it sends to clients
    exchanges: ClassVar[int] = 1  # trips down and up in one round
    paper: ClassVar[str] = ""  # what `fedkd list strategies` cites
    works_across_students: ClassVar[bool] = False  # whether clients may differ in architecture

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Hyper-parameters of the server half."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @abstractmethod
    def init(self, problem: Problem, stream: Stream) -> S:
        """The state before the first round. Raises ConfigError if the problem does not fit the algorithm."""

    @abstractmethod
    def plan(self, state: S, cohort: Cohort) -> Mapping[ClientId, Payload]:
        """What each client of the cohort receives; equal payloads are one object."""

    @abstractmethod
    def aggregate(self, state: S, replies: Sequence[Reply], stream: Stream) -> tuple[S, Numbers]:
        """The next state, and numbers for the ledger. Replies are admitted and in ascending order of client."""

    @abstractmethod
    def served(self, state: S, client: ClientId | None) -> Payload | None:
        """The student that `client` would use now (entries it keeps are added there), as `weights`.

        `client=None` asks for the global student; None if the algorithm has none.
        """
