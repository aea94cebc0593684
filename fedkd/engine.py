"""Engine: runs jobs somewhere and yields replies; knows no algorithm."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fedkd import plain_text
from fedkd.payload import Numbers, Payload, Weights

LONGEST_TEXT = 2000  # characters of an exception's text
ClientId = int
Task = Literal["train", "evaluate", "evaluate_common", "evaluate_pooled", "evaluate_shared"]
UNANSWERED = frozenset({"raised", "late", "lost", "no_data"})  # causes of failures: no reply came
# A reply came and was refused. `unsettled`: no subset of the round's replies gave a finite state (settling.py).
REFUSED = frozenset(
    {"stale", "kinds", "names", "shape", "dtype", "range", "non_finite", "size", "unreadable", "unsettled"}
)
CAUSES = UNANSWERED | REFUSED


@dataclass(frozen=True, kw_only=True)
class ClientState:
    """A client's memory between its rounds: only tensors, numbers, text and dictionaries of these."""

    kept: Weights = field(default_factory=dict)  # entries of its student that stay with it (all except for shared ones)
    memory: Mapping[str, Any] = field(default_factory=dict)  # what its algorithm remembers
    optimiser: Mapping[str, Any] = field(default_factory=dict)  # Adam's moments, if they stay with the client
    epoch: int = 0  # the current pass over its data
    position: int = 0  # samples of that pass already drawn
    last_round: int = 0  # the last round it took part in; in a training job, an earlier round; 0 = never


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task for one client.

    Evaluation: `evaluate` takes the client's student on its own test split, `evaluate_common` the same student on
    pooled test images that are the same for all, `evaluate_pooled` the global student on a part of the pooled test set
    (`client` is the number of the part). `evaluate_shared` is `evaluate` for all of `clients`, which share one student.
    """

    task: Task
    client: ClientId
    round: int  # counts from 1
    payload: Payload
    state: ClientState = field(default_factory=ClientState)
    exchange: int = 0  # counts from 0 within the round
    wants_logits: bool = False  # evaluate_pooled: for metrics that need all of them
    clients: tuple[ClientId, ...] = ()  # of evaluate_shared, which runs where all their samples are; `client` is first


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The result of a job. Untrusted until `border.admit` has checked it."""

    client: ClientId
    round: int
    task: Task = "train"
    exchange: int = 0
    payload: Payload = field(default_factory=Payload)
    state: ClientState = field(default_factory=ClientState)
    num_examples: int = 0  # training: size of the client's data; evaluation: samples classified
    numbers: Numbers = field(default_factory=dict)
    probe: Tensor | None = None  # (N,) uint8: the trained student's labels of the probe images, for diagnostics
    by_label: Tensor | None = None  # (2, C) int64: by label, images and correct ones; for common and pooled images
    judged: Tensor | None = None  # evaluate_shared: (K, 3) float64, per client: samples, correct ones, sum of losses
    logits: Tensor | None = None  # evaluate_pooled, if asked for: (N, C) float32
    seconds: float = 0.0  # a machine fact, not in the ledger


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that gave no usable reply: a value, not an exception; the round continues."""

    client: ClientId
    round: int
    what: str  # a sentence: `weights: 'head.bias' has shape (9,), expected (10,)`
    cause: str  # one of CAUSES
    detail: str = ""  # the traceback, if any
    task: Task = "train"
    exchange: int = 0

    @property
    def is_rejected(self) -> bool:
        """Whether a reply came and the border refused it."""
        return self.cause not in UNANSWERED


Result = Reply | Failure


class Engine(ABC):
    """Runs jobs. Results come in any order; every job gives exactly one Reply or Failure."""

    name: str

    @abstractmethod
    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        """Run the jobs; after `deadline` seconds, unanswered ones are Failures with cause `late`."""

    def close(self) -> None:
        """Free processes and memory. May be called twice."""

    def facts(self) -> Mapping[str, Any]:
        """What `run.json` records of the machine side: workers, address, replacements."""
        return {}


# Progress of a round, for people: its phase, jobs done and jobs in all; 0 of 0: the phase has no jobs.
Watch = Callable[[str, int, int], None]


def unwatched(phase: str, done: int, asked: int) -> None:
    """A Watch that shows nothing."""


def results(runner: Engine, jobs: Sequence[Job], deadline: float | None, phase: str, watch: Watch) -> list[Result]:
    """An engine's results for jobs, while `watch` counts them."""
    answers: list[Result] = []
    watch(phase, 0, len(jobs))
    for result in runner.run(jobs, deadline):
        answers.append(result)
        watch(phase, len(answers), len(jobs))
    return answers


def pair(jobs: Sequence[Job], results: Sequence[Result]) -> list[tuple[Job, Result]]:
    """Jobs with their results, in the order of the jobs.

    Only the first result for a job counts, and a result without a job is ignored: a reply names its own client, and
    may lie.
    """
    by_key: dict[tuple[str, ClientId], Result] = {}
    for result in results:
        by_key.setdefault((result.task, result.client), result)
    return [(job, by_key.get((job.task, job.client)) or failed(job, "no result came", "lost")) for job in jobs]


def failure(job: Job, error: BaseException, cause: str = "raised") -> Failure:
    """An exception as a value, with its traceback."""
    detail = "".join(traceback.format_exception(error))
    what = plain_text.printable(f"{type(error).__name__}: {error}", LONGEST_TEXT, keep="\n")  # it may quote anything
    return failed(job, what, cause, detail)


def failed(job: Job, what: str, cause: str, detail: str = "") -> Failure:
    """The Failure of one job."""
    return Failure(
        client=job.client, round=job.round, task=job.task, exchange=job.exchange, what=what, cause=cause, detail=detail
    )
