"""The engine that runs jobs on any Flower Grid: sends messages, reads replies, turns bad ones into Failures."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedkd import engine
from fedkd.border.checks import printable
from fedkd.engine import ClientId, Engine, Failure, Job, Result
from fedkd.errors import EngineError
from fedkd.payload import Payload
from fedkd.training.site import LocalSite
from simulations.engines.inline import late
from simulations.flower import codec
from simulations.flower.codec import Malformed, Record
from simulations.flower.message_limits import OWN, Limits

PATIENCE = 300.0  # seconds for nodes to appear; each assembles its site meanwhile
POLL = 0.02  # seconds between polls of an idle grid; Flower has no notification

_HERE = {"evaluate_pooled", "evaluate_shared"}

NOBODY = "no node acts for this client now"

_CAUSES = {  # Flower's error codes -> our causes; all others: raised
    ErrorCode.MESSAGE_UNAVAILABLE: "late",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "late",
    ErrorCode.NODE_UNAVAILABLE: "lost",
    ErrorCode.CLIENT_APP_CRASHED: "lost",
}


class FlowerEngine(Engine):
    """Runs jobs as messages on a Grid; evaluations of more than one client run at `site`, the server's own."""

    name = "flower"

    def __init__(self, grid: Grid, site: LocalSite, patience: float = PATIENCE) -> None:
        self.grid, self.site, self.patience = grid, site, patience
        self._nodes: tuple[int, ...] = ()

    def run(self, jobs: Sequence[Job], deadline: float | None = None) -> Iterator[Result]:
        end = None if deadline is None else time.monotonic() + deadline
        waiting: dict[str, Job] = {}
        away = [job for job in jobs if job.task not in _HERE]
        at = self._locate(away)
        for job, message in messages([job for job in away if job.client in at], at.__getitem__):
            ids = list(self.grid.push_messages([message]))
            if ids and ids[0]:
                waiting[ids[0]] = job
            else:
                what = f"the grid has no node {message.metadata.dst_node_id} any more"
                yield self._about(engine.failed(job, what, "lost"))
        for job in away:
            if job.client not in at:
                yield self._about(engine.failed(job, NOBODY, "lost"))
        for job in jobs:
            if job.task in _HERE:
                yield self.site.run(job)
        yield from self._collect(waiting, end)
        for job in waiting.values():
            yield self._about(late(job))

    def facts(self) -> Mapping[str, Any]:
        return {"nodes": len(self._nodes)}

    def _locate(self, jobs: Sequence[Job]) -> Mapping[ClientId, int]:
        """The node that acts for each client. If there are fewer nodes than clients, a node acts for several."""
        if jobs and not self._nodes:
            self._nodes = find_nodes(self.grid, self.patience)
        return {job.client: self._nodes[job.client % len(self._nodes)] for job in jobs}

    def _result_of(self, reply: Message, job: Job) -> Result:
        return read(reply, job)

    def _about(self, failure: Failure) -> Failure:
        """The failure in this engine's words."""
        return failure

    def _pause(self) -> float:
        return POLL

    def _collect(self, waiting: dict[str, Job], end: float | None) -> Iterator[Result]:
        """Results as they arrive, matched by message id: Flower's own errors have the wrong sender."""
        while waiting and (end is None or time.monotonic() < end):
            replies = list(self.grid.pull_messages(list(waiting)))
            for reply in replies:
                if job := waiting.pop(reply.metadata.reply_to_message_id, None):
                    yield self._result_of(reply, job)
            if not replies:
                time.sleep(self._pause())


def messages(jobs: Sequence[Job], node_of: Callable[[ClientId], int]) -> Iterator[tuple[Job, Message]]:
    """One message per job, to the node that acts for its client; encodes each distinct payload once."""
    encoded: dict[Payload, Mapping[str, Record]] = {}
    for job in jobs:
        if job.payload not in encoded:
            encoded[job.payload] = codec.encode_payload(job.payload)
        content = codec.encode_job(job, encoded[job.payload])
        kind = MessageType.TRAIN if job.task == "train" else MessageType.EVALUATE
        yield job, Message(content, node_of(job.client), kind, group_id=str(job.round))


def read(reply: Message, job: Job, limits: Limits = OWN) -> Result:
    """The result in a reply to a job. A bad reply becomes a Failure."""
    if reply.has_error():
        what = f"Flower: {printable(str(reply.error.reason))} (code {reply.error.code})"
        return engine.failed(job, what, _CAUSES.get(reply.error.code, "raised"))
    try:
        return codec.decode_result(reply.content, job, limits)
    except Malformed as error:
        return engine.failed(job, str(error), error.cause)


def find_nodes(grid: Grid, patience: float = PATIENCE) -> tuple[int, ...]:
    """Node ids in order of partition ids, once all partitions have a node. Raises EngineError.

    Node ids are random, so each node is asked for its partition.
    """
    end = time.monotonic() + patience
    nodes: dict[int, int] = {}  # partition -> node
    total = 0
    while not total or len(nodes) < total:
        unknown = sorted(set(grid.get_node_ids()) - set(nodes.values()))
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in unknown]
        for reply in grid.send_and_receive(questions, timeout=max(0.0, end - time.monotonic())) if questions else ():
            partition, total = _partition(reply, total)
            nodes[partition] = reply.metadata.src_node_id
        if time.monotonic() > end:
            what = f"after {patience:g} s Flower has {len(nodes)} of {total or 'an unknown number of'} nodes"
            raise EngineError(what, mend="look at the logs of the nodes; each needs its own partition-id")
        time.sleep(POLL)
    return tuple(node for _, node in sorted(nodes.items()))


def _partition(reply: Message, total: int) -> tuple[int, int]:
    """The partition of the replying node, and the number of partitions."""
    node = dict(reply.content.get("node", {})) if reply.has_content() else {}
    partition, partitions = node.get("partition-id"), node.get("num-partitions")
    if node.get("device"):
        raise EngineError(
            f"node {reply.metadata.src_node_id} is a device with data of its own, and this run is a simulation's",
            mend="add devices=true to the run config: flwr run . -c 'devices=true ...'",
        )
    if not isinstance(partition, int) or not isinstance(partitions, int) or not 0 <= partition < partitions:
        reason = reply.error.reason if reply.has_error() else f"partition-id {partition!r} of {partitions!r}"
        raise EngineError(
            f"node {reply.metadata.src_node_id} does not say which partition it has: {reason}",
            mend="its node-config needs partition-id and num-partitions",
        )
    if total and partitions != total:
        raise EngineError(f"nodes disagree on num-partitions: {partitions} and {total}")
    return partition, partitions
