"""Distributes jobs: one queue per worker, sent in chunks; a worker with an empty queue steals."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedkd.engine import Job

CHUNK_SECONDS = 0.020  # a call costs 0.35 to 0.8 ms (docs/engines.md): longer chunks gain little and balance worse
MESSAGE_SECONDS = 0.0005  # the least a job costs: the driver's share, which the worker does not measure
CHUNKS_PER_WORKER = 4  # at least, so that the last chunks of a round end at about the same time
ROUNDING = 1e-9  # without it the last digit of a sum may put two jobs where one fills a chunk

CacheKey = tuple[bool, int]  # jobs with the same key share a worker's cache: (is pooled evaluation, client)


@dataclass(eq=False)
class QueueEntry:
    """One job of a run and how often it has failed."""

    job: Job
    key: int  # number of its payload in this run
    suspicions: int = 0  # times a worker died on it, or could not send its answer

    @property
    def cache_key(self) -> CacheKey:
        return self.job.task == "evaluate_pooled", self.job.client


@dataclass
class Costs:
    """Seconds per job, by task, learned from answers; a job of an unknown task fills a chunk."""

    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, entry: QueueEntry) -> float:
        return self.seconds.get(entry.job.task, CHUNK_SECONDS)

    def learn(self, entry: QueueEntry, seconds: float) -> None:
        """The mean of the old estimate and the new duration: rounds of one run differ little."""
        seconds = max(seconds, MESSAGE_SECONDS)
        self.seconds[entry.job.task] = (self.seconds.get(entry.job.task, seconds) + seconds) / 2


class WorkQueues:
    """The unsent jobs of a run, in one queue per worker number."""

    def __init__(
        self, entries: Sequence[QueueEntry], workers: Sequence[int], affinity: Mapping[CacheKey, int], costs: Costs
    ):
        """`affinity`: the worker that ran the last job with this cache key; other jobs go to the shortest queue."""
        self._costs = costs
        self._queues: dict[int, deque[QueueEntry]] = {worker: deque() for worker in workers}
        self.stolen = 0
        load = dict.fromkeys(workers, 0.0)
        for entry in entries:
            known = affinity.get(entry.cache_key)
            worker = known if known in load else min(load, key=load.__getitem__)
            self._queues[worker].append(entry)
            load[worker] += costs.of(entry)
        share = sum(load.values()) / (CHUNKS_PER_WORKER * max(1, len(load)))
        self._target = min(CHUNK_SECONDS, share * (1 - ROUNDING))

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def take(self, worker: int) -> list[QueueEntry]:
        """A worker's next chunk: from its own queue, else from the end of the longest queue; [] if none."""
        if own := self._queues.get(worker):
            return self._cut(own, 0)
        victim = max(self._queues.values(), key=self._work, default=None)
        if not victim:
            return []
        chunk = self._cut(victim, -1)
        self.stolen += len(chunk)
        return chunk

    def put_back(self, entries: Sequence[QueueEntry]) -> None:
        """Return the jobs of a dead worker, in order, to the front of the shortest queue."""
        queue = min(self._queues.values(), key=self._work)
        queue.extendleft(reversed(entries))

    def _cut(self, queue: deque[QueueEntry], end: int) -> list[QueueEntry]:
        chunk: list[QueueEntry] = []
        seconds = 0.0
        while queue and not (chunk and (seconds >= self._target or chunk[0].suspicions or queue[end].suspicions)):
            chunk.append(queue[end])
            del queue[end]
            seconds += self._costs.of(chunk[-1])
        return chunk

    def _work(self, queue: deque[QueueEntry]) -> float:
        return sum(map(self._costs.of, queue))
