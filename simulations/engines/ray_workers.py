"""The workers of a Ray pool: placed, replaced when they die, dropped when they cannot be."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from fedkd.errors import EngineError
from simulations.engines import ray_actor, ray_session
from simulations.engines.inline import Place
from simulations.engines.work_queues import Part
from simulations.system import machine

GREETING_SECONDS = 120.0  # a worker imports torch: 2 to 6 s, more on a busy machine; then it counts as not to be placed
REPLACEMENTS_IN_A_ROW = 3  # of a worker that dies before its first answer


@dataclass(eq=False)
class Call:
    """A chunk on its way, or a greeting (no parts)."""

    ref: Any
    parts: list[Part]
    expires: float | None = None  # monotonic time at which the worker counts as stuck
    is_stale: bool = False  # its run is over: whatever it answers is dropped


@dataclass(eq=False)
class Slot:
    """A place for one worker. It is fed only while it owes neither a greeting nor an answer to an earlier run."""

    number: int
    actor: Any
    calls: deque[Call] = field(default_factory=deque)  # in the order sent, which is the order of work
    holds: set[int] = field(default_factory=set)  # numbers of the payloads it keeps
    deaths: int = 0  # since its last answer
    pid: int = 0  # 0: has not greeted yet

    @property
    def is_ready(self) -> bool:
        return all(call.parts and not call.is_stale for call in self.calls)


class Crew:
    """All slots. Its methods need a running Ray session."""

    def __init__(self, site: Place, workers: int) -> None:
        import ray

        self.slots: list[Slot] = []
        self.replaced = 0
        self.dropped = 0
        # Not restarted by Ray: a restarted actor has lost what it holds without our knowing.
        self._actor = ray.remote(ray_actor.Worker).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        self._site = ray.put(ray_actor.encode(site))
        for number in range(workers):
            self.slots.append(Slot(number, None))
            self._spawn(self.slots[-1])

    def serve(self, site: Place) -> None:
        """Give every worker another site; each is fed again after it has answered."""
        import ray

        self._site = ray.put(ray_actor.encode(site))
        for slot in self.slots:
            self._greet(slot, slot.actor.serve.remote(self._site))

    def check_first(self) -> None:
        """Raises EngineError if no worker has answered its greeting, or the first answer was its death."""
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
            memory = f"too little memory is a usual cause: {machine.limits()}"
            raise EngineError(
                f"Ray has died: {why}", mend=f"the rounds before are saved, continue with fedkd resume; {memory}"
            )

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
        """End a worker; its calls then have an answer or an error at once."""
        import ray

        if ray.is_initialized():  # else the call would start another Ray
            ray.kill(slot.actor, no_restart=True)

    def check_time(self) -> None:
        """Replace stuck workers, drop those that cannot be placed."""
        now = time.monotonic()
        for slot in list(self.slots):
            overdue = [call for call in slot.calls if call.expires is not None and call.expires <= now]
            overdue = [call for call in overdue if not _is_answered(call)]  # while nobody was looking
            if any(not call.parts for call in overdue):
                self.kill(slot)
                self._drop(slot, f"a worker could not be placed within {GREETING_SECONDS:g} s")
            elif overdue:
                self.replace(slot, "a worker was stuck")

    def expires(self) -> float:
        """When `check_time` is next due, in monotonic time."""
        times = [call.expires for slot in self.slots for call in slot.calls if call.expires is not None]
        return min(times, default=float("inf"))

    def close(self) -> None:
        """Kill all workers: on a cluster nobody else would."""
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
            memory = f"too little memory is a usual cause: {machine.limits()}"
            mend = f"resume the run with fewer workers (engine.workers) or engine=inline; {memory}"
            raise EngineError(f"no Ray worker is left; the last: {why}", mend=mend)


def _is_answered(call: Call) -> bool:
    import ray

    return bool(ray.wait([call.ref], timeout=0)[0])
