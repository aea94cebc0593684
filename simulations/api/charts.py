"""Charts of one run, as Vega-Lite specifications."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulations.report.chart import SCHEMA, Row, Spec, numbers, thinned

_MOST = 2000  # points of a line
_ACCURACIES = {"accuracy.global": "global", "accuracy.clients.mean": "clients, mean"}


def accuracy(rows: Sequence[Row]) -> Spec:
    """Accuracy by round: of the global student, and the mean over clients on their own test splits."""
    points = [
        {"round": row["round"], "accuracy": row[key], "student": name}
        for key, name in _ACCURACIES.items()
        for row in thinned([row for row in rows if row.get(key) is not None], _MOST)
    ]
    encoding = {
        "x": {"field": "round", "type": "quantitative"},
        "y": numbers("accuracy", "accuracy"),
        "color": {"field": "student", "type": "nominal", "title": None},
    }
    return _chart(points, {"type": "line", "point": len(points) < 100, "tooltip": True}, encoding)


def clients(rows: Sequence[Row]) -> Spec:
    """The latest accuracy of each client on its own test split."""
    latest = {row["client"]: row["accuracy"] for row in rows if row.get("accuracy") is not None}
    points = [{"client": client, "accuracy": value} for client, value in sorted(latest.items())]
    encoding = {
        "x": {"field": "client", "type": "ordinal"},
        "y": {"field": "accuracy", "type": "quantitative", "scale": {"domain": [0, 1]}},
    }
    return _chart(points, {"type": "bar", "tooltip": True}, encoding)


OF_RUN: Mapping[str, Callable[[Sequence[Row]], Spec]] = {"accuracy": accuracy, "clients": clients}


def _chart(points: Sequence[Row], mark: Spec, encoding: Mapping[str, Any]) -> Spec:
    return {"$schema": SCHEMA, "data": {"values": list(points)}, "mark": mark, "encoding": encoding}
