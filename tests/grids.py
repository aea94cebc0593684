"""A Flower Grid inside this process, for tests: nodes answer when they are asked, in whatever order is wished."""

from collections.abc import Callable, Iterable, Mapping
from itertools import count

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

App = Callable[[Message, Context], Message]


def set_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process of a ServerApp has, and messages ask for."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class LocalGrid(Grid):
    """Runs an app for each message as it is pushed. Node ids tell nothing: partition p is node 700 - 3 p.

    `lose` names nodes that take messages and never answer; `backwards` gives the replies in reverse order; `spoil`
    changes them.
    """

    def __init__(self, app: App, nodes: int, run_config: Mapping[str, str] | None = None) -> None:
        self.app, self.run_config = app, dict(run_config or {})
        self.partitions = {700 - 3 * partition: partition for partition in range(nodes)}
        self.lose: set[int] = set()
        self.backwards = False
        self.spoil: Callable[[Message, Message], Message] = lambda message, reply: reply
        self.pushed: list[Message] = []
        self._replies: dict[str, Message] = {}
        self._numbers = count()

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return set(self.partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self.partitions:
                continue
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            self.pushed.append(message)
            ids.append(message.metadata.message_id)
            if node not in self.lose:
                self._replies[message.metadata.message_id] = self.spoil(message, self._answer(message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [self._replies.pop(i) for i in message_ids if i in self._replies]
        return reversed(found) if self.backwards else found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        config = {"partition-id": self.partitions[node], "num-partitions": len(self.partitions)}
        return self.app(message, Context(1, node, config, RecordDict(), self.run_config))  # type: ignore[arg-type]
