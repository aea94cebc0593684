"""The Ray engine: a pool of workers that outlives rounds and runs."""

import atexit
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedkd.engine import Engine, Job, Result
from fedkd.errors import EngineError, FedkdError
from simulations.engines import ray_actor, ray_session
from simulations.engines.inline import JobRunner
from simulations.engines.ray_dispatch import LOOK_SECONDS, Dispatch
from simulations.engines.ray_workers import GREETING_SECONDS, Workers
from simulations.engines.work_queues import CacheKey, Costs

USE_SECONDS = 5.0  # for jobs to notice that Ray has died
_CLOSED = "the Ray pool is closed"


class RayPool(Engine):
    """Runs jobs in worker processes, by default one per core, or on the cluster at `address` (HOST:PORT).

    The driver owns all client state: it travels in the job and returns in the reply, so a worker may die at any
    time. Results equal the inline engine's bytes. Raises EngineError if Ray cannot start or no worker is left.
    """

    name = "ray"

    def __init__(self, site: JobRunner, *, workers: int | None = None, address: str | None = None) -> None:
        self._site, self._num_workers, self._address = site, workers, address
        self._lock = threading.Lock()  # guards _site and _workers between this thread and the pool's
        self._use = threading.Lock()  # held while jobs run, so that Ray is not shut down under them
        self._workers: Workers | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._started = threading.Event()  # or failed to
        self._affinity: dict[CacheKey, int] = {}
        self._costs = Costs()
        self._runs = 0
        self._stolen = 0
        self._news = threading.Event()  # the first worker has answered, or the pool is closing
        self._final: Mapping[str, Any] = {"address": address}

    def start(self) -> "RayPool":
        """Start the pool in its own thread and return at once; `is_ready` follows after 4 to 10 s."""
        if self._closing.is_set():
            raise EngineError(_CLOSED)
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="ray pool", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        return self

    @property
    def is_ready(self) -> bool:
        """Whether `run` can begin at once. Raises the start error, if any."""
        if not self._started.is_set():
            return False
        if self._error is not None:
            raise self._error
        return True

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        self.start()._started.wait()
        if not self.is_ready or self._workers is None:
            raise EngineError(_CLOSED)
        self._runs += 1
        dispatch = Dispatch(self._workers, jobs, number=self._runs, affinity=self._affinity, costs=self._costs)
        with self._use:
            try:
                yield from dispatch.results(deadline)
            finally:
                self._stolen += dispatch.queues.stolen

    def serve(self, site: JobRunner) -> None:
        """Run the following jobs at another site."""
        with self._lock:
            self._site = site
            self._affinity.clear()
            self._costs = Costs()
            if self._workers is not None:
                self._workers.serve(site)

    def close(self) -> None:
        """End all workers, and Ray if this pool started it. Safe to call twice, and while the pool starts."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)

    def facts(self) -> Mapping[str, Any]:
        """Address, number of workers, replaced and dropped workers, stolen jobs."""
        workers = self._workers
        if workers is None:
            return self._final
        counts = {"workers": len(workers.slots), "replaced": workers.replaced, "dropped": workers.dropped}
        return {"address": self._address, **counts, "stolen": self._stolen}

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have answered, each on its own machine."""
        return [slot.pid for slot in self._workers.slots if slot.pid] if self._workers is not None else []

    def _live(self) -> None:
        """The whole life of the pool, in one thread, as `ray_session.session` requires."""
        try:
            data_bytes = ray_actor.num_bytes(self._site)
            session = ray_session.session(workers=self._num_workers, address=self._address, data_bytes=data_bytes)
            with session as num_workers:
                atexit.unregister(self.close)
                atexit.register(self.close)  # again: it must run before Ray's own handler
                self._open(num_workers)
                self._started.set()
                self._watch()
                self._shut()
        except FedkdError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  # raised at the driver's next use of the pool
            self._error = EngineError(f"the Ray pool broke down: {type(error).__name__}: {error}")
            self._error.__cause__ = error
        finally:
            self._started.set()

    def _open(self, num_workers: int) -> None:
        """Start the workers and wait for the first; the others join as they become ready."""
        with self._lock:
            workers = self._workers = Workers(self._site, num_workers)
        news = self._news
        for slot in workers.slots:
            slot.calls[0].ref.future().add_done_callback(lambda _: news.set())
        news.wait(GREETING_SECONDS)
        if not self._closing.is_set():
            workers.check_first()

    def _watch(self) -> None:
        """Wait until the pool closes or Ray dies; a death is raised at the next use of the pool."""
        while self._workers is not None and not self._closing.wait(LOOK_SECONDS):
            try:
                self._workers.check_alive()
            except EngineError as error:
                self._error = error
                break

    def _shut(self) -> None:
        with self._lock:
            self._final = self.facts()
            workers, self._workers = self._workers, None
        if workers is not None and self._error is None:
            workers.close()
        if self._use.acquire(timeout=USE_SECONDS):
            self._use.release()
