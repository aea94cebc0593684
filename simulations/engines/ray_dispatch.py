"""One run of jobs on a Ray crew: chunks out, answers in, the dead replaced, the late given up."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedkd import engine
from fedkd.engine import Failure, Job, Result
from fedkd.payload import Payload
from simulations.engines import ray_actor
from simulations.engines.inline import late
from simulations.engines.ray_workers import Call, Crew, Slot
from simulations.engines.work_queues import Costs, Lanes, Part, Resident

CALLS_IN_FLIGHT = 2  # a worker: it does one while the next waits at its door
LOOK_SECONDS = 1.0  # between looks at whether Ray itself is alive: it takes 10 before it ends this process
LONG_SECONDS = 0.1  # of work at a worker: the next call's 0.5 ms can then wait
SUSPICIONS = 3  # a job that stood at the head of this many dying workers is given up
GRACE_SECONDS = 10.0  # or as long as the deadline, if that is longer: what is unanswered then has a stuck worker


@dataclass
class Stored:
    """A payload of the run: one object in Ray's store while anybody may still need it, none if it has one job."""

    payload: Payload
    jobs: int = 0
    unsent: int = 0  # of these
    ref: Any = None

    def argument(self) -> Any:
        """What a worker that does not hold it yet is sent."""
        import ray

        if self.jobs == 1:
            return ray_actor.encode(self.payload)
        if self.ref is None:
            self.ref = ray.put(ray_actor.encode(self.payload))
        return self.ref


class Dispatch:
    """The bookkeeping of one run. `number` tells runs apart; `homes` and `costs` are learned for later ones."""

    def __init__(
        self, crew: Crew, jobs: Sequence[Job], *, number: int, homes: dict[Resident, int], costs: Costs
    ) -> None:
        self._crew, self._number, self._homes, self._costs = crew, number, homes, costs
        self._stored: list[Stored] = []
        keys: dict[Payload, int] = {}  # by identity: equal payloads are one object
        parts = []
        for job in jobs:
            key = keys.setdefault(job.payload, len(keys))
            if key == len(self._stored):
                self._stored.append(Stored(job.payload))
            self._stored[key].jobs += 1
            self._stored[key].unsent += 1
            parts.append(Part(job, key))
        self._unanswered = dict.fromkeys(parts)
        for slot in crew.slots:
            slot.holds.clear()  # payloads are numbered anew
        self.lanes = Lanes(parts, [slot.number for slot in crew.slots], homes, costs)

    def results(self, deadline: float | None) -> Iterator[Result]:
        """Every job's result as it comes; at the deadline, `late` failures for the rest."""
        end = float("inf") if deadline is None else time.monotonic() + deadline
        try:
            while self._unanswered:
                if time.monotonic() >= end:
                    yield from (late(part.job) for part in self._unanswered)
                    return
                self._crew.check_alive()
                self._crew.check_time()
                self._feed()
                if answered := self._wait(end):
                    yield from self._receive(*answered)
        finally:
            self._abandon(max(GRACE_SECONDS, deadline or 0.0))

    def _feed(self) -> None:
        for depth in range(CALLS_IN_FLIGHT):  # everybody gets one chunk before anybody gets a second
            for slot in self._crew.slots:
                if self._is_hungry(slot, depth) and (parts := self.lanes.take(slot.number)):
                    self._send(slot, parts)

    def _is_hungry(self, slot: Slot, depth: int) -> bool:
        """Whether another call gains anything: behind a long one it would only be out of reach for idle workers."""
        if not slot.is_ready or len(slot.calls) != depth:
            return False
        return not depth or sum(map(self._costs.of, slot.calls[0].parts)) <= LONG_SECONDS

    def _send(self, slot: Slot, parts: list[Part]) -> None:
        for part in parts:
            self._stored[part.key].unsent -= 1
        keys = dict.fromkeys(part.key for part in parts)
        new = [key for key in keys if key not in slot.holds]
        last = [key for key in keys if not self._stored[key].unsent]
        tasks = [(ray_actor.encode(replace(part.job, payload=_EMPTY)), part.key) for part in parts]
        arguments = [self._stored[key].argument() for key in new]
        slot.calls.append(Call(slot.actor.work.remote(self._number, tasks, last, new, *arguments), parts))
        slot.holds = (slot.holds | set(new)) - set(last)
        for key in last:  # a job that comes back from a dead worker stores its payload anew
            self._stored[key].ref = None

    def _wait(self, end: float) -> tuple[Slot, Call] | None:
        """The next call that is answered, whatever its answer; None if the time to look at the clock came first."""
        import ray

        calls = {call.ref: (slot, call) for slot in self._crew.slots for call in slot.calls}
        left = min(end, self._crew.expires()) - time.monotonic()
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=min(max(0.0, left), LOOK_SECONDS))
        return calls[ready[0]] if ready else None

    def _receive(self, slot: Slot, call: Call) -> Iterator[Result]:
        import ray

        try:
            answer = ray.get(call.ref)
        except (ray.exceptions.RayTaskError, ray.exceptions.TaskCancelledError) as error:
            if not call.parts:  # it cannot take the site: as good as dead
                yield from self._bury(slot, error)
                return
            # The worker lives: what it wanted to answer cannot travel, or we took the call back.
            slot.calls.remove(call)
            slot.holds.clear()
            yield from self._suspect([] if call.is_stale else call.parts, "raised", error)
        except ray.exceptions.RayError as error:
            self._crew.check_alive()  # else it would be taken for the worker's own death
            yield from self._bury(slot, error)
        else:
            slot.calls.remove(call)
            slot.deaths = 0
            if not call.parts:
                slot.pid = answer
            elif not call.is_stale:
                yield from self._accept(slot, call.parts, answer)

    def _accept(self, slot: Slot, parts: list[Part], answer: list[tuple[Result, float]]) -> Iterator[Result]:
        for part, (result, seconds) in zip(parts, answer, strict=True):
            self._costs.learn(part, seconds)
            self._homes[part.resident] = slot.number
            del self._unanswered[part]
            yield ray_actor.decode(result)

    def _bury(self, slot: Slot, error: Exception) -> Iterator[Result]:
        """A worker died. What it had answered counts; only the call at its head is suspect; the others go back."""
        import ray

        self._crew.kill(slot)
        calls = list(slot.calls)
        while calls and (answer := _answer(ray, calls[0])) is not None:
            done = calls.pop(0)
            if done.parts and not done.is_stale:
                yield from self._accept(slot, done.parts, answer)
        live = [call for call in calls if call.parts and not call.is_stale]
        head = live[0].parts if live and live[0] is calls[0] else []
        waiting = [part for call in live if call.parts is not head for part in call.parts]
        self._crew.replace(slot, str(error))
        self._return(waiting)
        yield from self._suspect(head, "lost", error)

    def _suspect(self, parts: list[Part], cause: str, error: Exception) -> Iterator[Result]:
        """Run the parts again, each in a call of its own; give up those suspected too often."""
        for part in parts:
            part.suspicions += 1
        limit = SUSPICIONS if cause == "lost" else 2
        self._return([part for part in parts if part.suspicions < limit])
        for part in parts:
            if part.suspicions >= limit:
                del self._unanswered[part]
                yield _given_up(part.job, cause, error)

    def _return(self, parts: list[Part]) -> None:
        for part in parts:
            self._stored[part.key].unsent += 1
        self.lanes.put_back(parts)

    def _abandon(self, grace: float) -> None:
        """What is still out belongs to no run: its answers are dropped, and who does not answer at all is replaced."""
        import ray

        for slot in self._crew.slots:
            for call in slot.calls:
                if call.parts and not call.is_stale:
                    call.is_stale, call.expires = True, time.monotonic() + grace
                    ray.cancel(call.ref)  # takes back what has not begun


def _answer(ray: Any, call: Call) -> Any:
    """What a call of a dead worker had answered, None if nothing."""
    try:
        return ray.get(call.ref)
    except ray.exceptions.RayError:
        return None


def _given_up(job: Job, cause: str, error: Exception) -> Failure:
    return engine.failed(job, f"client {job.client}: {_WHAT[cause]}", cause, str(error))


_EMPTY = Payload()
_WHAT = {
    "lost": f"{SUSPICIONS} workers died while they ran it",
    "raised": "its answer cannot travel between processes",
}
