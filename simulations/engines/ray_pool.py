"""The Ray engine: a pool of persistent workers that outlives rounds and runs."""

import atexit
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedkd.engine import Engine, Job, Result
from fedkd.errors import EngineError, FedkdError
from simulations.engines import ray_actor, ray_session
from simulations.engines.inline import Place
from simulations.engines.ray_dispatch import LOOK_SECONDS, Dispatch
from simulations.engines.ray_workers import GREETING_SECONDS, Crew
from simulations.engines.work_queues import Costs, Resident

USE_SECONDS = 5.0  # for jobs to notice that Ray has died


class RayPool(Engine):
    """Runs jobs in worker processes, by default one a core, or on the cluster at `address` (HOST:PORT).

    The driver owns all client state: it travels in the job and comes back in the reply, so that a worker may die at
    any time. Results are the bytes of the inline engine. Raises EngineError if Ray cannot start or no worker is left.
    """

    name = "ray"

    def __init__(self, site: Place, *, workers: int | None = None, address: str | None = None) -> None:
        self._site, self._workers, self._address = site, workers, address
        self._lock = threading.Lock()  # guards _site and _crew between this thread and the pool's
        self._use = threading.Lock()  # held while jobs run: Ray must not be shut down under them
        self._crew: Crew | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._started = threading.Event()  # or failed to
        self._homes: dict[Resident, int] = {}
        self._costs = Costs()
        self._runs = 0
        self._stolen = 0
        self._news = threading.Event()  # the first worker has answered, or the pool is closing
        self._final: Mapping[str, Any] = {"address": address}

    def start(self) -> "RayPool":
        """Begin to start the pool in a thread of its own, and return at once; 4 to 10 s later `is_ready`."""
        if self._closing.is_set():
            raise _closed()
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="ray pool", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        return self

    @property
    def is_ready(self) -> bool:
        """Whether `run` would begin at once. Raises what went wrong in starting."""
        if not self._started.is_set():
            return False
        if self._error is not None:
            raise self._error
        return True

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        self.start()._started.wait()
        if not self.is_ready or self._crew is None:
            raise _closed()
        self._runs += 1
        dispatch = Dispatch(self._crew, jobs, number=self._runs, homes=self._homes, costs=self._costs)
        with self._use:
            try:
                yield from dispatch.results(deadline)
            finally:
                self._stolen += dispatch.lanes.stolen

    def serve(self, site: Place) -> None:
        """From now on run jobs at another site: the next run of a comparison."""
        with self._lock:
            self._site = site
            self._homes.clear()
            self._costs = Costs()
            if self._crew is not None:
                self._crew.serve(site)

    def close(self) -> None:
        """End all workers, and Ray unless it was there before. May be called twice, and while the pool is starting."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)

    def facts(self) -> Mapping[str, Any]:
        """Workers, address, how many were replaced or dropped, how many jobs were stolen."""
        crew = self._crew
        if crew is None:
            return self._final
        counts = {"workers": len(crew.slots), "replaced": crew.replaced, "dropped": crew.dropped}
        return {"address": self._address, **counts, "stolen": self._stolen}

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have answered, on whatever machine they are."""
        return [slot.pid for slot in self._crew.slots if slot.pid] if self._crew is not None else []

    def _live(self) -> None:
        """The pool's life, in one thread, as `ray_session.session` demands."""
        try:
            data_bytes = ray_actor.num_bytes(self._site)
            with ray_session.session(workers=self._workers, address=self._address, data_bytes=data_bytes) as workers:
                atexit.unregister(self.close)
                atexit.register(self.close)  # again, so that it runs before Ray's own, which was registered meanwhile
                self._open(workers)
                self._started.set()
                self._watch()
                self._shut()
        except FedkdError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  # surfaces where the driver next asks the pool
            self._error = EngineError(f"the Ray pool broke down: {type(error).__name__}: {error}")
            self._error.__cause__ = error
        finally:
            self._started.set()

    def _open(self, workers: int) -> None:
        """Place the workers and wait for the first; the others join rounds as they come."""
        with self._lock:
            crew = self._crew = Crew(self._site, workers)
        news = self._news
        for slot in crew.slots:
            slot.calls[0].ref.future().add_done_callback(lambda _: news.set())
        news.wait(GREETING_SECONDS)
        if not self._closing.is_set():
            crew.check_first()

    def _watch(self) -> None:
        """Until the pool is closed, or Ray has died: then the next that asks the pool is told."""
        while self._crew is not None and not self._closing.wait(LOOK_SECONDS):
            try:
                self._crew.check_alive()
            except EngineError as error:
                self._error = error
                break

    def _shut(self) -> None:
        with self._lock:
            self._final = self.facts()
            crew, self._crew = self._crew, None
        if crew is not None and self._error is None:
            crew.close()
        if self._use.acquire(timeout=USE_SECONDS):
            self._use.release()


def _closed() -> EngineError:
    return EngineError("the Ray pool is closed")
