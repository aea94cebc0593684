"""Which worker does what next: one lane of parts a worker, cut into chunks; a worker with an empty lane steals."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedkd.engine import Job

CHUNK_SECONDS = 0.020  # a call costs 0.35 to 0.8 ms (docs/engines.md): longer chunks gain little and balance worse
MESSAGE_SECONDS = 0.0005  # a job costs at least: the driver's part of it, which its worker does not see
CHUNKS_A_WORKER = 4  # at least, so that the last chunks of a round end at about the same time

Resident = tuple[bool, int]  # whose cache a job would find warm: (is it a part of the pooled test set, its number)


@dataclass(eq=False)
class Part:
    """One job of a run and what became of it so far."""

    job: Job
    key: int  # number of its payload in this run
    suspicions: int = 0  # how often a worker died, or an answer could not be sent, while this stood at its head

    @property
    def resident(self) -> Resident:
        return self.job.task == "evaluate_pooled", self.job.client


@dataclass
class Costs:
    """Seconds a job takes, by task, learned from answers; an unknown task fills a chunk."""

    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, part: Part) -> float:
        return self.seconds.get(part.job.task, CHUNK_SECONDS)

    def learn(self, part: Part, seconds: float) -> None:
        """Half the old estimate, half the new duration: rounds of one run differ little."""
        seconds = max(seconds, MESSAGE_SECONDS)
        self.seconds[part.job.task] = (self.seconds.get(part.job.task, seconds) + seconds) / 2


class Lanes:
    """The parts of a run that are not sent yet. Lanes are numbered like the workers they belong to."""

    def __init__(self, parts: Sequence[Part], lanes: Sequence[int], homes: Mapping[Resident, int], costs: Costs):
        """`homes`: the worker that did this resident's last job; newcomers go where the least work waits."""
        self._costs = costs
        self._lanes: dict[int, deque[Part]] = {lane: deque() for lane in lanes}
        self.stolen = 0
        load = dict.fromkeys(lanes, 0.0)
        for part in parts:
            home = homes.get(part.resident)
            lane = home if home in load else min(load, key=load.__getitem__)
            self._lanes[lane].append(part)
            load[lane] += costs.of(part)
        self._target = min(CHUNK_SECONDS, sum(load.values()) / (CHUNKS_A_WORKER * max(1, len(load))))

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def take(self, lane: int) -> list[Part]:
        """A worker's next chunk: of its own lane, else from the end of the lane with most work; [] if none."""
        if own := self._lanes.get(lane):
            return self._cut(own, 0)
        victim = max(self._lanes.values(), key=self._work, default=None)
        if not victim:
            return []
        chunk = self._cut(victim, -1)
        self.stolen += len(chunk)
        return chunk

    def put_back(self, parts: Sequence[Part]) -> None:
        """Parts whose worker died: first in the shortest lane, in their order."""
        lane = min(self._lanes.values(), key=self._work)
        lane.extendleft(reversed(parts))

    def _cut(self, lane: deque[Part], end: int) -> list[Part]:
        chunk: list[Part] = []
        seconds = 0.0
        while lane and not (chunk and (seconds >= self._target or chunk[0].suspicions or lane[end].suspicions)):
            chunk.append(lane[end])
            del lane[end]
            seconds += self._costs.of(chunk[-1])
        return chunk

    def _work(self, lane: deque[Part]) -> float:
        return sum(map(self._costs.of, lane))
