"""Charts as Vega-Lite specifications: what all share. Rows are the data; sizes are given where a chart is drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedkd import plain_text
from simulations.report.summary_table import Table

Row = dict[str, Any]
Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # its name; nothing is fetched from it
# Okabe and Ito 2008: told apart by all kinds of colour vision. Dashes and marks say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#B8A200")
DASHES = ((1, 0), (6, 3), (2, 2), (9, 3, 2, 3), (12, 3), (4, 2, 1, 2))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
LONGEST_LABEL = 200  # pixels
MOST_PANELS = 24
OWN_Y = {"scale": {"y": "independent"}}  # a panel lists its own methods
OWN_SCALES = {"scale": {"x": "independent", "y": "independent"}}  # and has its own range
MOST_ROWS = 6_000  # of one chart
MOST_MARKS = 3_000  # of a chart with a mark each


@dataclass(frozen=True)
class Chart:
    """A figure: a specification of panels, the text that says the same, and the numbers behind it.

    `least` is the width of a panel that can be read, `margin` what its axis takes beside it, `square` whether it is
    as high as wide, up to `most`. `axes`: choices for x, name -> (field, title).
    """

    name: str
    title: str
    summary: str
    spec: Spec
    table: Table | None = None
    least: int = 250
    margin: int = 56
    square: bool = False
    most: int = 420
    axes: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Names come from files: the renderer aborts at a control character, and takes minutes for a very long one.
        object.__setattr__(self, "spec", plain_text.shown(self.spec))

    @property
    def panels(self) -> int:
        return len(self.spec["facet"]["sort"])

    @property
    def is_wide(self) -> bool:
        """Whether it takes the whole width of a wide page: more than two panels."""
        return self.panels > 2


def panels(rows: Sequence[Row], names: Sequence[str], layers: Sequence[Spec], **more: Any) -> Spec:
    """Small multiples by `panel`; a single one without a name has no header. `more` belongs to each panel."""
    named = len(names) > 1 or any(names)
    header = {"labelAnchor": "start", "labelFontWeight": "bold"} if named else None
    resolve = more.pop("resolve", {})
    return {
        "$schema": SCHEMA,
        "data": {"values": list(rows)},
        "facet": {"field": "panel", "type": "nominal", "sort": list(names), "title": None, "header": header},
        "spec": {**more, "layer": list(layers)},
        "resolve": {"axis": {"x": "independent", "y": "independent"}, **resolve},
    }


def colour(methods: Sequence[str], **legend: Any) -> Spec:
    """The colour of each method, the same in all charts."""
    return {
        "field": "method",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(methods), "range": cycled(COLOURS, len(methods))},
        **legend,
    }


def dash(methods: Sequence[str]) -> Spec:
    """The line of each method."""
    scale = {"domain": list(methods), "range": [list(each) for each in cycled(DASHES, len(methods))]}
    return {"field": "method", "type": "nominal", "title": None, "scale": scale}


def shape(methods: Sequence[str]) -> Spec:
    """The mark of each method."""
    scale = {"domain": list(methods), "range": cycled(SHAPES, len(methods))}
    return {"field": "method", "type": "nominal", "title": None, "scale": scale}


def method_axis(methods: Sequence[str], **more: Any) -> Spec:
    """Methods one below the other, by name."""
    axis = {"ticks": False, "domain": False}
    return {"field": "method", "type": "nominal", "sort": list(methods), "title": None, "axis": axis, **more}


def label_room(methods: Sequence[str]) -> int:
    """Pixels that names of methods take beside an axis; longer ones are cut."""
    return min(max(24 + 7 * max(map(len, methods)), 70), LONGEST_LABEL + 20)


def numbers(name: str, title: str | None, **more: Any) -> Spec:
    """A numeric channel that need not begin at 0."""
    return {"field": name, "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}, **more}


def cycled(values: Sequence[Any], count: int) -> list[Any]:
    return [values[index % len(values)] for index in range(count)]


def thinned(found: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of them, evenly, with the first and the last."""
    if len(found) <= most:
        return list(found)
    step = (len(found) - 1) / (max(most, 2) - 1)
    return [found[round(index * step)] for index in range(max(most, 2))]


def short(value: float, digits: int = 5) -> float | None:
    """As few digits as a picture can show; None for what is no number."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
