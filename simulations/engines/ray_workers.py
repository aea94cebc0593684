"""The workers of a Ray pool: started, replaced when they die, dropped when that fails too often."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from fedkd.errors import EngineError
from simulations.engines import ray_actor, ray_session
from simulations.engines.inline import JobRunner
from simulations.engines.work_queues import QueueEntry
from simulations.system import machine

GREETING_SECONDS = 120.0  # importing torch takes a worker 2 to 6 s, more if busy; after this it is dropped
REPLACEMENTS_IN_A_ROW = 3  # of a worker that dies before its first answer


@dataclass(eq=False)
class Call:
    """A chunk sent to a worker, or a greeting (no entries)."""

    ref: Any
    entries: list[QueueEntry]
    expires: float | None = None  # monotonic time at which the worker counts as stuck
    is_stale: bool = False  # its run is over: the answer is discarded


@dataclass(eq=False)
class Slot:
    """A place for one worker, which gets jobs after it has answered its greeting and all calls of earlier runs."""

    number: int
    actor: Any
    calls: deque[Call] = field(default_factory=deque)  # in the order sent, which is the order of work
    holds: set[int] = field(default_factory=set)  # numbers of the payloads it holds
    deaths: int = 0  # since its last answer
    pid: int = 0  # 0: has not greeted yet

    @property
    def is_ready(self) -> bool:
        return all(call.entries and not call.is_stale for call in self.calls)


class Workers:
    """All slots. Its methods need a running Ray session."""

    def __init__(self, site: JobRunner, num_workers: int) -> None:
        import ray

        self.slots: list[Slot] = []
        self.replaced = 0
        self.dropped = 0
        # Ray must not restart actors: we would not notice that a restarted one has lost its payloads.
        self._actor = ray.remote(ray_actor.Worker).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        self._site = ray.put(ray_actor.packed(site))
        for number in range(num_workers):
            self.slots.append(Slot(number, None))
            self._spawn(self.slots[-1])

    def serve(self, site: JobRunner) -> None:
        """Give every worker another site; each gets jobs again after it has answered."""
        import ray

        self._site = ray.put(ray_actor.packed(site))
        for slot in self.slots:
            self._greet(slot, slot.actor.serve.remote(self._site))

    def check_first(self) -> None:
        """Raises EngineError if no worker has answered its greeting, or the first one died."""
        import ray

        ready, _ = ray.wait([slot.calls[0].ref for slot in self.slots], num_returns=1, timeout=0)
        if not ready:
            mend = "are its CPUs taken by others? Ask for fewer with engine.workers, or use engine=inline"
            raise EngineError(f"no Ray worker could be placed within {GREETING_SECONDS:g} s", mend=mend)
        try:
            ray.get(ready[0])
        except ray.exceptions.RayError as error:
            raise EngineError(f"a Ray worker cannot start: {error}", mend="use engine=inline") from error

    def check_alive(self) -> None:
        """Raises EngineError if Ray itself has died."""
        if why := ray_session.died():
            mend = f"earlier rounds are saved, continue with fedkd resume; {_memory()}"
            raise EngineError(f"Ray has died: {why}", mend=mend)

    def replace(self, slot: Slot, why: str) -> None:
        """Kill a worker and start another in its place, or drop the slot after too many attempts.

        Raises EngineError if no slot is left.
        """
        self.kill(slot)
        slot.deaths += 1
        if slot.deaths > REPLACEMENTS_IN_A_ROW:
            self._drop(slot, why)
            return
        self.replaced += 1
        self._spawn(slot)

    def kill(self, slot: Slot) -> None:
        """End a worker; its pending calls end at once, in an answer or an error."""
        import ray

        if ray.is_initialized():  # else `ray.kill` would start another Ray
            ray.kill(slot.actor, no_restart=True)

    def check_time(self) -> None:
        """Replace stuck workers, drop those that cannot be placed."""
        now = time.monotonic()
        for slot in list(self.slots):
            overdue = [call for call in slot.calls if call.expires is not None and call.expires <= now]
            overdue = [call for call in overdue if not _is_answered(call)]  # answered since the last check
            if any(not call.entries for call in overdue):
                self.kill(slot)
                self._drop(slot, f"a worker could not be placed within {GREETING_SECONDS:g} s")
            elif overdue:
                self.replace(slot, "a worker was stuck")

    def expires(self) -> float:
        """When `check_time` is next due, in monotonic time."""
        times = [call.expires for slot in self.slots for call in slot.calls if call.expires is not None]
        return min(times, default=float("inf"))

    def close(self) -> None:
        """Kill all workers; a cluster would keep them running."""
        for slot in self.slots:
            self.kill(slot)
        self.slots.clear()

    def _spawn(self, slot: Slot) -> None:
        slot.actor = self._actor.remote(self._site)
        slot.calls.clear()
        slot.holds.clear()
        slot.pid = 0
        self._greet(slot, slot.actor.greet.remote())

    def _greet(self, slot: Slot, ref: Any) -> None:
        slot.calls.append(Call(ref, [], time.monotonic() + GREETING_SECONDS))

    def _drop(self, slot: Slot, why: str) -> None:
        self.slots.remove(slot)
        self.dropped += 1
        if not self.slots:
            mend = f"resume the run with fewer workers (engine.workers) or engine=inline; {_memory()}"
            raise EngineError(f"no Ray worker is left; the last: {why}", mend=mend)


def _memory() -> str:
    return f"too little memory is a usual cause: {machine.limits()}"


def _is_answered(call: Call) -> bool:
    import ray

    return bool(ray.wait([call.ref], timeout=0)[0])
