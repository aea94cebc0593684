"""Roster: which device acts for which client, and which devices have joined, left or refused.

Flower's node ids are random, so each node is asked once per run which client it is.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedkd.border.checks import printable
from fedkd.errors import EngineError

POLL = 0.25  # seconds between polls of a grid across a network
GRACE = 60.0  # seconds to wait for late devices once enough have joined
ASK_AGAIN = 120.0  # seconds until a node is asked again: it may have crashed before it replied
_TEXT = 200  # characters of a text that a node reports
_FACTS = 32  # facts that a node may report
_NOT_KEPT = {"name", "refused", "partition-id", "num-partitions", "device"}  # run.json keeps all other facts


@dataclass(frozen=True)
class JoinedDevice:
    """A node that acts for a client."""

    node: int
    client: int
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # as reported: versions, student, memory, threads


class Roster:
    """The devices of a run. Calls `notify` when one joins, leaves or refuses."""

    def __init__(
        self,
        grid: Grid,
        clients: int,
        notify: Callable[[str, str], None],
        names: Mapping[int, str] | None = None,
        keys: Mapping[int, int] | None = None,
    ) -> None:
        self.grid, self.clients, self.notify = grid, clients, notify
        self.keys = dict(keys or {})  # client -> node id under which its device's key is registered
        self.names = dict(names or {})  # client -> name of its device
        self._joined: dict[int, JoinedDevice] = {}  # by client
        self._pending: dict[str, tuple[int, float]] = {}  # message id -> node that has not answered yet, time of asking
        self._refused: set[int] = set()  # nodes that do not take part in this run

    def name(self, client: int) -> str:
        """The name of a client's device."""
        return self.names.get(client, f"the device of client {client}")

    def _registered_name(self, node: int) -> str | None:
        """The name of the device whose key a node has; None if the key is not registered."""
        return next((self.names.get(client) for client, known in self.keys.items() if known == node), None)

    def node(self, client: int) -> int | None:
        """The node that acts for a client now, if there is one."""
        device = self._joined.get(client)
        return device.node if device else None

    def facts(self) -> list[dict[str, Any]]:
        """The facts about the devices that run.json keeps, by client."""
        return [{"client": d.client, "name": d.name, **d.facts} for _, d in sorted(self._joined.items())]

    def wait(self, minimum: int, patience: float) -> None:
        """Wait for all devices, or for `minimum` and a grace period. Raises EngineError after `patience`."""
        end, grace = time.monotonic() + patience, None
        while len(self._joined) < self.clients:
            self.refresh()
            now = time.monotonic()
            if len(self._joined) >= minimum:
                grace = grace or min(end, now + GRACE)
                if now > grace:
                    return
            if now > end:
                what = f"after {patience:g} s {len(self._joined)} of {self.clients} devices have joined, "
                mend = "see the devices' logs, and the reasons for refusals above"
                raise EngineError(what + f"{minimum} are needed", mend=mend)
            time.sleep(POLL)

    def refresh(self) -> None:
        """Update the list of nodes: ask new ones, read answers. Does not wait."""
        present = set(self.grid.get_node_ids())
        for client, device in list(self._joined.items()):
            if device.node not in present:
                del self._joined[client]
                self.notify(f"{device.name} is gone; its state is kept, it may come back", "warn")
        self._refused &= present
        now = time.monotonic()
        joined = self._joined_nodes()
        self._pending = {asked: (node, at) for asked, (node, at) in self._pending.items() if node in present - joined}
        waiting = {node for node, at in self._pending.values() if now - at < ASK_AGAIN}
        for node in sorted(present - joined - waiting - self._refused):
            sent = list(self.grid.push_messages([Message(RecordDict(), node, MessageType.QUERY)]))
            if sent and sent[0]:
                self._pending[sent[0]] = node, now
        if self._pending:
            self._read(self.grid.pull_messages(list(self._pending)))

    def _joined_nodes(self) -> set[int]:
        return {device.node for device in self._joined.values()}

    def _read(self, replies: Iterable[Message]) -> None:
        for reply in replies:
            node, _ = self._pending.pop(reply.metadata.reply_to_message_id, (None, 0.0))
            if node is None or node in self._joined_nodes():
                continue  # not asked by us, or a second answer
            try:
                self._admit(_introduction(reply, node, self.clients, self._registered_name(node)))
            except _Refused as refusal:
                self._refused.add(node)
                self.notify(str(refusal), "warn")

    def _admit(self, device: JoinedDevice) -> None:
        client, prefix = device.client, f"{device.name} is not accepted: "
        if self.keys.get(client, device.node) != device.node:
            raise _Refused(f"{prefix}it reports that it is client {client}, which has another device's key")
        if holder := self._joined.get(client):
            mend = "two devices have one number: give one of them its own kit"
            raise _Refused(f"{prefix}{holder.name} has already joined as client {client}; {mend}")
        self._joined[client] = device
        self.names[client] = device.name
        self.notify(f"{device.name} has joined as client {client}", "note")


class _Refused(Exception):
    """Why a node does not take part."""


def _introduction(reply: Message, node: int, clients: int, known: str | None) -> JoinedDevice:
    """Check a node's introduction; `known`: the name of its registered key. Raises _Refused."""
    label = f"{known} (node {node})" if known else f"node {node}"
    if reply.has_error():
        reason = printable(str(reply.error.reason), _TEXT)
        raise _Refused(f"{label} is not accepted: {reason} (code {reply.error.code})")
    if "failure" in reply.content:  # the node's worker could not even query the device
        what = printable(str(reply.content["failure"].get("what")), _TEXT)
        raise _Refused(f"{label} is not accepted: {what}")
    reported: Mapping[str, Any] = reply.content.get("node", {})
    if len(reported) > _FACTS:
        raise _Refused(f"{label} is not accepted: it reports {len(reported)} facts, at most {_FACTS} are read")
    facts = {printable(name, _TEXT): _plain(value) for name, value in reported.items() if _is_plain(value)}
    name = known or str(facts.get("name", "")) or label
    if refused := facts.get("refused"):
        raise _Refused(f"{name} does not take part: {refused}")
    client = facts.get("partition-id")
    if type(client) is not int or not 0 <= client < clients:
        what = f"it reports that it is client {client!r}, the run has clients 0 to {clients - 1}"
        raise _Refused(f"{name} is not accepted: {what}")
    return JoinedDevice(node, client, name, {key: value for key, value in facts.items() if key not in _NOT_KEPT})


def _plain(value: Any) -> Any:
    return printable(value, _TEXT) if isinstance(value, str) else value


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # JSON has no other numbers
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= _TEXT)
