"""The engine of a deployed run: sends each job to the device that acts for its client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd import engine
from fedkd.border.checks import printable
from fedkd.engine import ClientId, Failure, Job, Reply, Result
from fedkd.training.site import LocalSite
from fedkd.wrappers import privacy
from simulations.deploy.memory import VERSION, version_of
from simulations.deploy.roster import POLL, Roster
from simulations.flower.grid_engine import NOBODY, FlowerEngine, read
from simulations.flower.message_limits import Limits

REPLY = Limits(size=1 << 28, text=1 << 20, entries=10_000)  # the largest reply of a device that is read
DEADLINE = 3600.0  # seconds, the default: a hanging device must not block the others forever
_NAMED = {"raised", "late", "lost"}  # causes that concern a machine: the message names the device
_LOST = "lost"  # in a stub's memory: the device no longer has the requested version

PLAINTEXT = "no TLS: others can read and change everything that devices send and receive in this round"


class EdgeEngine(FlowerEngine):
    """Runs jobs on devices; pooled evaluation runs at `site`, the server's own."""

    name = "devices"

    def __init__(
        self,
        grid: Grid,
        site: LocalSite,
        roster: Roster,
        *,
        notify: Callable[[str, str], None],
        is_plaintext: bool = False,
    ) -> None:
        super().__init__(grid, site)
        self.roster, self.notify, self.is_plaintext = roster, notify, is_plaintext

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        if self.is_plaintext and any(job.task == "train" and job.exchange == 0 for job in jobs):
            self.notify(PLAINTEXT, "warn")
        yield from super().run(jobs, DEADLINE if deadline is None else deadline)

    def facts(self) -> Mapping[str, Any]:
        return {"devices": self.roster.facts(), "tls": not self.is_plaintext}

    def _locate(self, jobs: Sequence[Job]) -> Mapping[ClientId, int]:
        self.roster.refresh()
        return {job.client: node for job in jobs if (node := self.roster.node(job.client)) is not None}

    def _pause(self) -> float:
        return POLL

    def _result_of(self, reply: Message, job: Job) -> Result:
        result = read(reply, job, REPLY)
        if isinstance(result, Failure):
            return self._about(result)
        return self._with_stub(result, job)

    def _with_stub(self, reply: Reply, job: Job) -> Result:
        """The reply with only a stub as its state; warns if the device has lost its memory."""
        state = reply.state
        if state.kept or state.optimiser or set(state.memory) - {VERSION, _LOST, privacy.MEMORY}:
            return engine.failed(job, "a device's memory must stay with it", "kinds")
        try:
            version = version_of(state)
        except ValueError as error:
            return engine.failed(job, printable(str(error)), "range")
        if state.memory.get(_LOST):
            lost = f"{self.roster.name(job.client)} has lost its state from before round {job.round}"
            self.notify(f"{lost}; it continued from the initial state", "warn")
        kept: dict[str, Any] = {} if version is None else {VERSION: version}
        if privacy.MEMORY in state.memory:
            kept[privacy.MEMORY] = {}  # the device has spent its epsilon, whose value is in the configuration
        return replace(reply, state=replace(state, memory=kept))

    def _about(self, failure: Failure) -> Failure:
        if failure.cause not in _NAMED:
            return failure
        name = self.roster.name(failure.client)
        if failure.what == NOBODY:
            return replace(failure, what=f"{name} is not connected")
        # For `raised` the ledger keeps only the text before the first colon: the exception's name.
        what = f"{failure.what} [{name}]" if failure.cause == "raised" else f"{name}: {failure.what}"
        return replace(failure, what=what)
