"""Roster: which device acts for which client, and which have joined, left or refused.

Flower's node ids are random: each node is asked once per run which client it is.
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
GRACE = 60.0  # seconds to wait for late devices once there are enough
ASK_AGAIN = 120.0  # seconds, then ask again: the node may have crashed before it replied
_TEXT = 200  # characters of what a node says of itself
_FACTS = 32  # things it says; run.json keeps them


@dataclass(frozen=True)
class Member:
    """A node that acts for a client."""

    node: int
    client: int
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it says of itself: versions, student, memory, threads


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
        self.keys = dict(keys or {})  # client -> node id that its device's key is registered as
        self.names = dict(names or {})  # client -> name, of devices that have not joined yet
        self._members: dict[int, Member] = {}  # by client
        self._asked: dict[str, tuple[int, float]] = {}  # message id -> node that has not answered yet, asked when
        self._refused: set[int] = set()  # nodes that take no part in this run

    def name(self, client: int) -> str:
        """The name of a client's device."""
        return self.names.get(client, f"the device of client {client}")

    def _called(self, node: int) -> str | None:
        """The name of the device whose key a node has; None if it is not registered."""
        client = next((client for client, known in self.keys.items() if known == node), None)
        return self.names.get(client) if client is not None else None

    def node(self, client: int) -> int | None:
        """The node that acts for a client now, if there is one."""
        member = self._members.get(client)
        return member.node if member else None

    def facts(self) -> list[dict[str, Any]]:
        """What run.json keeps of the devices, by client."""
        return [{"client": m.client, "name": m.name, **m.facts} for _, m in sorted(self._members.items())]

    def wait(self, minimum: int, patience: float) -> None:
        """Wait for all devices, or for `minimum` and a grace period. Raises EngineError after `patience`."""
        end, grace = time.monotonic() + patience, None
        while len(self._members) < self.clients:
            self.refresh()
            now = time.monotonic()
            if len(self._members) >= minimum:
                grace = grace or min(end, now + GRACE)
                if now > grace:
                    return
            if now > end:
                raise EngineError(
                    f"after {patience:g} s {len(self._members)} of {self.clients} devices have joined, "
                    f"{minimum} are needed",
                    mend="look at the logs of the devices, and at what they were refused for above",
                )
            time.sleep(POLL)

    def refresh(self) -> None:
        """Update the list of nodes: ask new ones, read answers. Does not wait."""
        present = set(self.grid.get_node_ids())
        for client, member in list(self._members.items()):
            if member.node not in present:
                del self._members[client]
                self.notify(f"{member.name} is gone; its state is kept, it may come back", "warn")
        self._refused &= present
        now = time.monotonic()
        joined = self._joined()
        self._asked = {asked: (node, at) for asked, (node, at) in self._asked.items() if node in present - joined}
        waiting = {node for node, at in self._asked.values() if now - at < ASK_AGAIN}
        known = joined | waiting | self._refused
        new = sorted(present - known)
        for node in new:
            taken = list(self.grid.push_messages([Message(RecordDict(), node, MessageType.QUERY)]))
            if taken and taken[0]:
                self._asked[taken[0]] = node, now
        if self._asked:
            self._listen(self.grid.pull_messages(list(self._asked)))

    def _joined(self) -> set[int]:
        return {member.node for member in self._members.values()}

    def _listen(self, replies: Iterable[Message]) -> None:
        for reply in replies:
            node, _ = self._asked.pop(reply.metadata.reply_to_message_id, (None, 0.0))
            if node is None or node in self._joined():
                continue  # not asked by us, or a second answer
            try:
                self._admit(_introduction(reply, node, self.clients, self._called(node)))
            except _NotTaken as refusal:
                self._refused.add(node)
                self.notify(str(refusal), "warn")

    def _admit(self, member: Member) -> None:
        if self.keys.get(member.client, member.node) != member.node:
            raise _NotTaken(
                f"{member.name} is not accepted: it says it is client {member.client}, which is another device's key"
            )
        holder = self._members.get(member.client)
        if holder is not None:
            raise _NotTaken(
                f"{member.name} is not accepted: {holder.name} is already there as client {member.client}; "
                "two devices with one number: give one of them its own kit"
            )
        self._members[member.client] = member
        self.names[member.client] = member.name
        self.notify(f"{member.name} has joined as client {member.client}", "note")


class _NotTaken(Exception):
    """Why a node takes no part."""


def _introduction(reply: Message, node: int, clients: int, known: str | None) -> Member:
    """Check a node's introduction; `known`: the name of its registered key. Raises _NotTaken."""
    called = f"{known} (node {node})" if known else f"node {node}"
    if reply.has_error():
        reason = printable(str(reply.error.reason), _TEXT)
        raise _NotTaken(f"{called} is not accepted: {reason} (code {reply.error.code})")
    if "failure" in reply.content:  # its worker could not even ask the device
        what = printable(str(reply.content["failure"].get("what")), _TEXT)
        raise _NotTaken(f"{called} is not accepted: {what}")
    told: Mapping[str, Any] = reply.content.get("node", {})
    if len(told) > _FACTS:
        raise _NotTaken(
            f"{called} is not accepted: it reports {len(told)} facts about itself, at most {_FACTS} are read"
        )
    said = {printable(name, _TEXT): _plain(value) for name, value in told.items() if _is_plain(value)}
    claimed = str(said.pop("name", ""))
    name = known or claimed or called
    refused = said.pop("refused", "")
    if refused:
        raise _NotTaken(f"{name} takes no part: {refused}")
    client = said.pop("partition-id", None)
    said.pop("num-partitions", None)  # from when its kit was made; later devices are missing
    if type(client) is not int or not 0 <= client < clients:
        raise _NotTaken(
            f"{name} is not accepted: it says it is client {client!r}, the run has clients 0 to {clients - 1}"
        )
    said.pop("device", None)
    return Member(node, client, name, said)


def _plain(value: Any) -> Any:
    return printable(value, _TEXT) if isinstance(value, str) else value


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # JSON has no others
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= _TEXT)
