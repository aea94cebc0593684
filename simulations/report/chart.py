"""What all charts share, as Vega-Lite specifications. Rows are the data; the drawing code sets sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedkd import plain_text
from simulations.analysis.result import Verdict
from simulations.report.summary_table import Table

Row = dict[str, Any]
Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched from there
# Okabe and Ito 2008: distinct for all kinds of colour vision. Dashes and marks repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#B8A200")
DASHES = ([1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [12, 3], [4, 2, 1, 2])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
LONGEST_LABEL = 200  # pixels
MOST_PANELS = 24
OWN_Y = {"scale": {"y": "independent"}}  # each panel lists its own methods
OWN_SCALES = {"scale": {"x": "independent", "y": "independent"}}  # each panel also has its own range
MOST_ROWS = 6_000  # of one chart
MOST_MARKS = 3_000  # of a chart that draws a mark per row
MOST_CELLS = 8_000  # of all heat maps of one chart
ZERO_LINE: Spec = {"mark": {"type": "rule", "strokeDash": [4, 4], "style": "guide"}, "encoding": {"x": {"datum": 0}}}


@dataclass(frozen=True)
class Chart:
    """A figure: a specification of panels, a text with the same content, and the numbers.

    `least`: the width from which a panel is readable; `margin`: the width of its axis; `square`: whether it is as high
    as wide, up to `most`. `axes`: choices for x, name -> (field, title).
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
        # Names come from files. The renderer aborts at a control character and takes minutes for a very long name.
        object.__setattr__(self, "spec", plain_text.shown(self.spec))

    @property
    def panels(self) -> int:
        return len(self.spec["facet"]["sort"])

    @property
    def is_wide(self) -> bool:
        """Whether the chart takes the whole width of a wide page: more than two panels."""
        return self.panels > 2


def panels(rows: Sequence[Row], names: Sequence[str], layers: Sequence[Spec], **more: Any) -> Spec:
    """Small multiples by `panel`; a single panel without a name has no header. `more` belongs to each panel."""
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


def by_method(methods: Sequence[str], values: Sequence[Any], **more: Any) -> Spec:
    """A channel with one of `values` (COLOURS, DASHES, SHAPES) per method, the same in all charts."""
    scale = {"domain": list(methods), "range": cycled(values, len(methods))}
    return {"field": "method", "type": "nominal", "title": None, "scale": scale, **more}


def points(size: int, encoding: Spec, **mark: Any) -> Spec:
    """A layer of filled marks."""
    return {"mark": {"type": "point", "filled": True, "size": size, **mark}, "encoding": encoding}


def heat_map(x: Spec, y: Spec, value: str, title: str, most: float, tips: Sequence[str]) -> Spec:
    """A layer of cells coloured by `value`, from 0 to `most`."""
    scale = {"type": "sqrt", "range": "ramp", "domain": [0, most]}
    colour = {"field": value, "type": "quantitative", "title": title, "scale": scale}
    return {"mark": {"type": "rect"}, "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip(*tips)}}


def tooltip(*names: str) -> list[Spec]:
    return [{"field": name} for name in names]


def settings(verdict: Verdict, rows: Sequence[Row]) -> list[str]:
    """The settings that have rows, in the order of the question: names of panels."""
    present = {row["panel"] for row in rows}
    return [setting for setting in verdict.question.settings if setting in present]


def methods(verdict: Verdict, rows: Sequence[Row]) -> list[str]:
    """The methods that have rows, in the order of the question."""
    present = {row["method"] for row in rows}
    return [method for method in verdict.question.methods if method in present]


def method_axis(methods: Sequence[str], **more: Any) -> Spec:
    """Methods one below the other, by name."""
    axis = {"ticks": False, "domain": False}
    return {"field": "method", "type": "nominal", "sort": list(methods), "title": None, "axis": axis, **more}


def label_room(methods: Sequence[str]) -> int:
    """Pixels for names of methods beside an axis; longer names are cut."""
    return min(max(24 + 7 * max(map(len, methods)), 70), LONGEST_LABEL + 20)


def numbers(name: str, title: str | None, **more: Any) -> Spec:
    """A numeric channel that may begin above 0."""
    return {"field": name, "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}, **more}


def cycled(values: Sequence[Any], count: int) -> list[Any]:
    return [values[index % len(values)] for index in range(count)]


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` values, evenly spaced, with the first and the last."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (max(most, 2) - 1)
    return [values[round(index * step)] for index in range(max(most, 2))]


def short(value: float, digits: int = 5) -> float | None:
    """A value with as few digits as a picture can show; None if it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
