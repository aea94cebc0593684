"""Runs jobs on the Ray workers: sends chunks, receives answers, replaces dead workers, gives up late jobs."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedkd import engine
from fedkd.engine import Job, Result
from fedkd.payload import Payload
from simulations.engines import ray_actor
from simulations.engines.inline import late
from simulations.engines.ray_workers import Call, Slot, Workers
from simulations.engines.work_queues import CacheKey, Costs, QueueEntry, WorkQueues

CALLS_IN_FLIGHT = 2  # per worker: one runs, the next waits
LOOK_SECONDS = 1.0  # between checks that Ray is alive: a dead Ray ends this process after 10
LONG_SECONDS = 0.1  # of work at a worker; behind so long a call the next one's 0.5 ms does not matter
SUSPICIONS = 3  # workers that die on a job before it is given up
GRACE_SECONDS = 10.0  # or the deadline, if longer: a worker that has not answered by then is stuck


@dataclass
class Stored:
    """A payload of the run: an object in Ray's store while jobs need it, or sent directly if only one job has it."""

    payload: Payload
    jobs: int = 0
    unsent: int = 0  # of these
    ref: Any = None

    def argument(self) -> Any:
        """What to send to a worker that does not hold the payload yet."""
        import ray

        if self.jobs == 1:
            return ray_actor.encode(self.payload)
        if self.ref is None:
            self.ref = ray.put(ray_actor.encode(self.payload))
        return self.ref


class Dispatch:
    """The bookkeeping of the run `number`. `affinity` and `costs` carry over to later runs."""

    def __init__(
        self, workers: Workers, jobs: Sequence[Job], *, number: int, affinity: dict[CacheKey, int], costs: Costs
    ) -> None:
        self._workers, self._number, self._affinity, self._costs = workers, number, affinity, costs
        self._stored: list[Stored] = []
        keys: dict[Payload, int] = {}  # by identity: equal payloads are one object
        entries = []
        for job in jobs:
            key = keys.setdefault(job.payload, len(keys))
            if key == len(self._stored):
                self._stored.append(Stored(job.payload))
            self._stored[key].jobs += 1
            self._stored[key].unsent += 1
            entries.append(QueueEntry(job, key))
        self._unanswered = dict.fromkeys(entries)
        for slot in workers.slots:
            slot.holds.clear()  # payloads are numbered anew
        self.queues = WorkQueues(entries, [slot.number for slot in workers.slots], affinity, costs)

    def results(self, deadline: float | None) -> Iterator[Result]:
        """Each job's result as it arrives; at the deadline, `late` failures for the rest."""
        end = float("inf") if deadline is None else time.monotonic() + deadline
        try:
            while self._unanswered:
                if time.monotonic() >= end:
                    yield from (late(entry.job) for entry in self._unanswered)
                    return
                self._workers.check_alive()
                self._workers.check_time()
                self._feed()
                if answered := self._wait(end):
                    yield from self._receive(*answered)
        finally:
            self._abandon(max(GRACE_SECONDS, deadline or 0.0))

    def _feed(self) -> None:
        for depth in range(CALLS_IN_FLIGHT):  # every worker gets one chunk before any gets a second
            for slot in self._workers.slots:
                if self._is_hungry(slot, depth) and (entries := self.queues.take(slot.number)):
                    self._send(slot, entries)

    def _is_hungry(self, slot: Slot, depth: int) -> bool:
        """Whether to send another call. Not behind a long one: idle workers could then not steal it."""
        if not slot.is_ready or len(slot.calls) != depth:
            return False
        return not depth or sum(map(self._costs.of, slot.calls[0].entries)) <= LONG_SECONDS

    def _send(self, slot: Slot, entries: list[QueueEntry]) -> None:
        for entry in entries:
            self._stored[entry.key].unsent -= 1
        keys = dict.fromkeys(entry.key for entry in entries)
        new = [key for key in keys if key not in slot.holds]
        last = [key for key in keys if not self._stored[key].unsent]
        tasks = [(ray_actor.encode(replace(entry.job, payload=_EMPTY)), entry.key) for entry in entries]
        arguments = [self._stored[key].argument() for key in new]
        slot.calls.append(Call(slot.actor.work.remote(self._number, tasks, last, new, *arguments), entries))
        slot.holds = (slot.holds | set(new)) - set(last)
        for key in last:  # a job returned by a dead worker stores its payload again
            self._stored[key].ref = None

    def _wait(self, end: float) -> tuple[Slot, Call] | None:
        """The next call to end, in an answer or an error; None if it is time to check the clock first."""
        import ray

        calls = {call.ref: (slot, call) for slot in self._workers.slots for call in slot.calls}
        left = min(end, self._workers.expires()) - time.monotonic()
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=min(max(0.0, left), LOOK_SECONDS))
        return calls[ready[0]] if ready else None

    def _receive(self, slot: Slot, call: Call) -> Iterator[Result]:
        import ray

        try:
            answer = ray.get(call.ref)
        except (ray.exceptions.RayTaskError, ray.exceptions.TaskCancelledError) as error:
            if not call.entries:  # the worker cannot load the site: treat it as dead
                yield from self._bury(slot, error)
                return
            # The worker is alive: its answer cannot be serialised, or we cancelled the call.
            slot.calls.remove(call)
            slot.holds.clear()
            yield from self._suspect([] if call.is_stale else call.entries, "raised", error)
        except ray.exceptions.RayError as error:
            self._workers.check_alive()  # a dead Ray must not pass for a dead worker
            yield from self._bury(slot, error)
        else:
            slot.calls.remove(call)
            slot.deaths = 0
            if not call.entries:
                slot.pid = answer
            elif not call.is_stale:
                yield from self._accept(slot, call.entries, answer)

    def _accept(self, slot: Slot, entries: list[QueueEntry], answer: list[tuple[Result, float]]) -> Iterator[Result]:
        for entry, (result, seconds) in zip(entries, answer, strict=True):
            self._costs.learn(entry, seconds)
            self._affinity[entry.cache_key] = slot.number
            del self._unanswered[entry]
            yield ray_actor.decode(result)

    def _bury(self, slot: Slot, error: Exception) -> Iterator[Result]:
        """A worker died: accept its finished answers, suspect the call it was running, queue the others again."""
        import ray

        self._workers.kill(slot)
        calls = list(slot.calls)
        while calls and (answer := _answer(ray, calls[0])) is not None:
            done = calls.pop(0)
            if done.entries and not done.is_stale:
                yield from self._accept(slot, done.entries, answer)
        live = [call for call in calls if call.entries and not call.is_stale]
        head = live[0].entries if live and live[0] is calls[0] else []
        waiting = [entry for call in live if call.entries is not head for entry in call.entries]
        self._workers.replace(slot, str(error))
        self._return(waiting)
        yield from self._suspect(head, "lost", error)

    def _suspect(self, entries: list[QueueEntry], cause: str, error: Exception) -> Iterator[Result]:
        """Queue the jobs again, each in a call of its own; give up those suspected too often."""
        for entry in entries:
            entry.suspicions += 1
        limit = SUSPICIONS if cause == "lost" else 2
        self._return([entry for entry in entries if entry.suspicions < limit])
        for entry in entries:
            if entry.suspicions >= limit:
                del self._unanswered[entry]
                yield engine.failed(entry.job, f"client {entry.job.client}: {_WHAT[cause]}", cause, str(error))

    def _return(self, entries: list[QueueEntry]) -> None:
        for entry in entries:
            self._stored[entry.key].unsent += 1
        self.queues.put_back(entries)

    def _abandon(self, grace: float) -> None:
        """Marks pending calls stale: late answers are discarded, silent workers replaced."""
        import ray

        for slot in self._workers.slots:
            for call in slot.calls:
                if call.entries and not call.is_stale:
                    call.is_stale, call.expires = True, time.monotonic() + grace
                    ray.cancel(call.ref)  # cancels calls that have not started


def _answer(ray: Any, call: Call) -> Any:
    """The answer a dead worker left for a call; None if there is none."""
    try:
        return ray.get(call.ref)
    except ray.exceptions.RayError:
        return None


_EMPTY = Payload()
_WHAT = {
    "lost": f"{SUSPICIONS} workers died while they ran it",
    "raised": "its answer cannot travel between processes",
}
