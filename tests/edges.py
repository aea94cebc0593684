"""Devices inside this process: every message goes through the app and the codec, as over a network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from grids import LocalGrid

from fedkd.configuration import compose
from fedkd.training.site import LocalSite
from simulations import flower_app
from simulations.deploy import assembly, shards
from simulations.deploy.engine import EdgeEngine
from simulations.deploy.roster import Roster
from simulations.run import runs
from simulations.run.driver import ExecutionTarget, Notify
from simulations.run.options import Options


class EdgeGrid(LocalGrid):
    """Nodes with data and memory of their own, below `folder`; `told` is what the run's people are told."""

    def __init__(self, folder: Path, words: Sequence[str], clients: int, name: str = "run") -> None:
        self.folder = folder
        self.resolved = compose.resolve([*words, f"clients={clients}", "engine=inline"])
        self.shards = [folder / f"device-{client}" for client in range(clients)]
        super().__init__(flower_app.client_app, clients, {"config": self.resolved.to_yaml(), "name": name})
        self.told: list[str] = []
        self.extra: dict[int, Mapping[str, Any]] = {}  # more of a client's node-config

    def share(self) -> "EdgeGrid":
        """Cut the data set of the configuration, a shard for each device."""
        shards.write(self.resolved.config, self.shards)
        return self

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        client = self.partitions[node]
        config = {
            "partition-id": client,
            "num-partitions": len(self.partitions),
            "name": f"edge-{client + 1}",
            "data": str(self.shards[client]),
            "state": str(self.shards[client] / "state"),
            **self.extra.get(client, {}),
        }
        return self.app(message, Context(1, node, config, RecordDict(), self.run_config))  # type: ignore[arg-type]

    def target(self, minimum: int | None = None, **changes: Any) -> ExecutionTarget:
        """Where a run is played on these devices."""
        clients = self.resolved.config.clients

        def connect(site: LocalSite, notify: Notify) -> EdgeEngine:
            def both(text: str, urgency: str) -> None:
                self.told.append(text)
                notify(text, urgency)

            roster = Roster(self, clients, both)
            roster.wait(clients if minimum is None else minimum, patience=changes.get("patience", 60.0))
            return EdgeEngine(self, site, roster, notify=both, is_plaintext=changes.get("is_plaintext", False))

        pack = self.shards[0] / "public.npz"
        assemble: Callable[..., Any] = lambda config: assembly.server(config, pack if pack.exists() else None)  # noqa: E731
        return ExecutionTarget(connect=connect, assemble=assemble, commit_each_round=True)

    def play(self, folder: Path, **changes: Any) -> dict[str, Any]:
        """Play the run in a folder; its summary."""
        quiet = Options(quiet=True)
        return runs.start(self.resolved, runs=folder, name="run", options=quiet, target=self.target(**changes))
