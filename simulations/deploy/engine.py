"""The engine of a deployed run: jobs go to the device that acts for their client, wherever it is."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedkd import engine, privacy
from fedkd.engine import Engine, Failure, Job, Reply, Result
from fedkd.training import Site
from simulations import flower
from simulations.deploy.memory import VERSION
from simulations.deploy.roster import POLL, Roster
from simulations.inline import late

MAX_REPLY = 1 << 28  # bytes of arrays in one reply: what is larger is refused before it is read
DEADLINE = 3600.0  # seconds, where the configuration has none: a device that hangs must not hold the others for ever
_NAMED = {"raised", "late", "lost"}  # causes whose words are about a machine: the device's name helps there
_LOST = "lost"  # in a stub's memory: the device has no longer the version it was asked for

PLAINTEXT = "no TLS: everything that devices send and receive in this round can be read and changed on its way"


class EdgeEngine(Engine):
    """Runs jobs on devices; parts of the pooled test set at `site`, the server's own."""

    name = "devices"

    def __init__(
        self, grid: Grid, site: Site, roster: Roster, *, tell: Callable[[str, str], None], is_plaintext: bool = False
    ) -> None:
        self.grid, self.site, self.roster, self.tell, self.is_plaintext = grid, site, roster, tell, is_plaintext

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        end = time.monotonic() + (DEADLINE if deadline is None else deadline)
        self.roster.refresh()
        if self.is_plaintext and any(job.task == "train" and job.exchange == 0 for job in jobs):
            self.tell(PLAINTEXT, "warn")
        at = {job.client: node for job in jobs if (node := self.roster.node(job.client)) is not None}
        away = [job for job in jobs if job.task != "evaluate_pooled"]
        waiting: dict[str, Job] = {}
        for job, message in flower.messages([job for job in away if job.client in at], at.__getitem__):
            taken = list(self.grid.push_messages([message]))
            if taken and taken[0]:
                waiting[taken[0]] = job
            else:
                yield self._named(engine.failed(job, "the SuperLink does not know its node any more", "lost"))
        for job in away:
            if job.client not in at:
                yield engine.failed(job, f"{self.roster.name(job.client)} is not connected", "lost")
        for job in jobs:
            if job.task == "evaluate_pooled":
                yield self.site.run(job)
        yield from self._collect(waiting, end)
        for job in waiting.values():
            yield self._named(late(job))

    def facts(self) -> Mapping[str, Any]:
        return {"devices": self.roster.facts(), "tls": not self.is_plaintext}

    def _collect(self, waiting: dict[str, Job], end: float) -> Iterator[Result]:
        while waiting and time.monotonic() < end:
            replies = list(self.grid.pull_messages(list(waiting)))
            for reply in replies:
                if job := waiting.pop(reply.metadata.reply_to_message_id, None):
                    yield self._read(reply, job)
            if not replies:
                time.sleep(POLL)

    def _read(self, reply: Message, job: Job) -> Result:
        if reply.has_content() and (size := num_bytes(reply)) > MAX_REPLY:
            what = f"reply has {size / 1e6:.0f} MB of arrays, at most {MAX_REPLY / 1e6:.0f} MB are read"
            return engine.failed(job, what, "size")
        result = flower.read(reply, job)
        if isinstance(result, Failure):
            return self._named(result)
        return self._told(result, job)

    def _told(self, reply: Reply, job: Job) -> Result:
        """The reply, with nothing but a stub for a state; a lost memory is told of."""
        state = reply.state
        if state.kept or state.optimiser or set(state.memory) - {VERSION, _LOST, privacy.MEMORY}:
            return engine.failed(job, "a device's memory must stay with it", "kinds")
        if state.memory.get(_LOST):
            name = self.roster.name(job.client)
            self.tell(f"{name} has lost its state of before round {job.round}; it went on from the initial one", "warn")
        kept: dict[str, Any] = {VERSION: version} if isinstance(version := state.memory.get(VERSION), str) else {}
        if privacy.MEMORY in state.memory:
            kept[privacy.MEMORY] = {}  # that it has spent its epsilon; which one, the configuration says
        return replace(reply, state=replace(state, memory=kept))

    def _named(self, failure: Failure) -> Failure:
        if failure.cause not in _NAMED:
            return failure
        name = self.roster.name(failure.client)
        # Of what was raised the ledger keeps the words before the first colon: the exception's name.
        what = f"{failure.what} [{name}]" if failure.cause == "raised" else f"{name}: {failure.what}"
        return replace(failure, what=what)


def num_bytes(message: Message) -> int:
    """Bytes of the arrays in a message."""
    records = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())
