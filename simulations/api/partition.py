"""Which client holds which samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.config import RunConfig
from fedkd.data import proxy, sources
from fedkd.data.partition import Partition
from simulations import assemble
from simulations.api import frames
from simulations.cli import partition_view
from simulations.report.chart import SCHEMA

if TYPE_CHECKING:
    import altair
    import pandas


@dataclass(frozen=True, eq=False)
class ClientPartition:
    """A partition of a data set. `indices.train[3]` are client 3's training samples, `indices.test[3]` its others."""

    indices: Partition
    train_labels: np.ndarray  # (N,) of the whole training set
    labels: Sequence[str]  # names of the classes

    @property
    def counts(self) -> np.ndarray:
        """Training samples (clients, classes)."""
        return self.indices.label_counts(self.train_labels)

    @property
    def facts(self) -> dict[str, Any]:
        """How unequal the clients are (docs/partitions.md), and the partition's SHA-256."""
        return self.indices.facts(self.train_labels)

    def rows(self) -> list[dict[str, Any]]:
        """A row per client and class: client, label, samples."""
        named = enumerate(self.counts.tolist())
        return [
            {"client": client, "label": label, "samples": count}
            for client, counts in named
            for label, count in zip(self.labels, counts, strict=True)
        ]

    def frame(self) -> "pandas.DataFrame":
        """`rows` as a data frame. Raises ConfigError without pandas."""
        return frames.frame(self.rows())

    def plot(self) -> "altair.TopLevelMixin":
        """A chart of the samples of each client and class. Raises ConfigError without altair."""
        axes = {"x": {"field": "client", "type": "ordinal"}, "y": {"field": "label", "type": "nominal", "sort": None}}
        colour = {"field": "samples", "type": "quantitative"}
        spec = {"data": {"values": self.rows()}, "mark": {"type": "rect", "tooltip": True}}
        return frames.chart({"$schema": SCHEMA, **spec, "encoding": {**axes, "color": colour}})

    def __str__(self) -> str:
        return partition_view.table(self.indices, self.train_labels, self.labels)

    def _repr_html_(self) -> str:
        rows = [[client, sum(own), *own] for client, own in enumerate(self.counts.tolist())]
        return frames.table(["client", "samples", *self.labels], rows)


def of(config: RunConfig) -> ClientPartition:
    """The partition of a configuration. Raises ConfigError and DataError."""
    dataset = sources.load(config.data)
    split = assemble.split_data(config, dataset, proxy.hold_out(config, dataset))
    return ClientPartition(split, dataset.train.y.numpy(), dataset.labels)
