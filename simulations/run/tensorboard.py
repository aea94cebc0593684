"""TensorBoard: the ledger's numbers as scalars in `tb/`.

Written record by record with TensorBoard's own protocol classes: torch.utils.tensorboard would start a thread and a
queue for a few scalars per round. The import waits for the first row, after the first round: 0.1 s beside torch.
"""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fedkd.record import ledger

_GROUPS = ("accuracy", "terms", "server", "drift", "local_accuracy", "clients")  # of a row of metrics.jsonl


class TensorBoardWriter:
    """One event file per process. A resume deletes older ones and rewrites the ledger's rows: no step appears twice."""

    def __init__(self, folder: Path, about: str = "") -> None:
        self.folder, self.about = folder, about  # the run's text in TensorBoard
        self._file: BinaryIO | None = None

    def restart(self, rows: Sequence[ledger.Row], timings: Sequence[ledger.Row]) -> None:
        """Start again with the rows of earlier rounds."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        at = {row["round"]: row for row in timings}
        for row in rows:
            self.write(row, at.get(row["round"], {}))

    def write(self, row: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """The scalars of one round. Raises OSError if the disk is full."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row, timings)]
        at = float(timings.get("at", time.time()))
        self._record(Event(wall_time=at, step=row["round"], summary=Summary(value=values)).SerializeToString())

    def close(self) -> None:
        """Close the event file. May be called twice."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _record(self, data: bytes) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            self.folder.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._file = (self.folder / name).open("ab")
            version = Event(wall_time=time.time(), file_version="brain.Event:2")
            RecordWriter(self._file).write(version.SerializeToString())
            RecordWriter(self._file).write(_text("run", self.about))
        RecordWriter(self._file).write(data)
        self._file.flush()


def _text(tag: str, text: str) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    value = Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
    return bytes(Event(wall_time=time.time(), summary=Summary(value=[value])).SerializeToString())


def scalars(row: Mapping[str, Any], timings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of a round: accuracy/global, bytes/up, bytes/up_weights, terms/ce, seconds/total, ..."""
    tree = {group: row.get(group, {}) for group in _GROUPS}
    tree["seconds"] = {name: value for name, value in timings.items() if name not in {"round", "at"}}
    for tag, value in ledger.flat(tree).items():
        if isinstance(value, int | float):  # neither null nor a list: matrices stay in the ledger
            yield tag.replace(".", "/", 1).replace(".", "_"), value
    for way, kinds in row["bytes"].items():
        yield f"bytes/{way}", sum(kinds.values())
        for kind, size in kinds.items():
            yield f"bytes/{way}_{kind}", size
