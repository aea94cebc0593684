"""Drawing with Vega-Lite: the look of charts in light and dark, SVG files, and the script that draws in a browser."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulations.report import chart
from simulations.report.chart import Chart, Spec

GAP = 28  # pixels between panels
_RATIO, _TALLER = 0.4, 1.6  # height of a panel to its width, and to the height that was asked for; also in page.js
FIGURE_WIDTH = 900
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_INKS = {
    "light": {"ink": "#1b1f24", "soft": "#57606a", "line": "#e3e6ea", "ramp": ["#e3eef9", "#6aaed6", "#08306b"]},
    "dark": {"ink": "#e8eaed", "soft": "#a3abb5", "line": "#333a43", "ramp": ["#10243c", "#2f7fc1", "#d6ecff"]},
}


def look(theme: str) -> Spec:
    """Vega-Lite's configuration for a theme; the background is the page's."""
    inks: Any = _INKS[theme]
    ink, soft, line = inks["ink"], inks["soft"], inks["line"]
    text = {
        "labelColor": ink,
        "titleColor": ink,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    return {
        "background": "transparent",
        "font": _FONT,
        "aria": False,  # the figure has a text; single marks are meaningless to a screen reader
        "view": {"stroke": None},
        "axis": {**text, "gridColor": line, "domainColor": soft, "tickColor": soft, "titlePadding": 8},
        "legend": {**text, "orient": "top", "symbolSize": 90, "symbolStrokeWidth": 2, "labelLimit": 260, "offset": 10},
        "header": {"labelColor": ink, "labelFontSize": 13, "labelPadding": 6},
        "range": {"ramp": inks["ramp"], "heatmap": inks["ramp"]},
        "style": {
            "guide": {"stroke": soft, "color": soft},
            "part": {"stroke": ink, "strokeWidth": 0.5},
        },
        "boxplot": {
            "box": {"fill": "transparent", "stroke": ink, "strokeWidth": 1.3},
            "rule": {"color": ink},
            "median": {"color": ink, "strokeWidth": 2.5},
        },
        "axisY": {"labelLimit": chart.LONGEST_LABEL, "minExtent": 34},
    }


def fitted(drawn: Chart, room: int) -> Spec:
    """The specification with as many columns as `room` pixels hold. The page's script does the same."""
    columns = min(drawn.panels, max(1, room // (drawn.least + drawn.margin)))
    columns = math.ceil(drawn.panels / math.ceil(drawn.panels / columns))  # no row is left half empty
    width = max(140, room // columns - drawn.margin - GAP)
    width = min(width, drawn.most) if drawn.square else width
    facet, panel = drawn.spec["facet"], drawn.spec["spec"]
    header = {**facet["header"], "labelLimit": width + GAP - 12} if facet["header"] else None
    facet = {**facet, "header": header}
    size = {"width": width, "height": _height(drawn, panel["height"], width)}
    return {**drawn.spec, "facet": facet, "columns": columns, "spec": {**panel, **size}}


def _height(drawn: Chart, height: Any, width: int) -> Any:
    """Unchanged if rows have a height of their own; else wider panels are higher, up to _TALLER times."""
    if drawn.square:
        return width
    return height if isinstance(height, dict) else max(height, min(round(_RATIO * width), round(_TALLER * height)))


def svg(drawn: Chart) -> str:
    """A self-contained picture, dark on light."""
    import vl_convert

    config = look("light")
    config |= {"background": "white", "legend": {**config["legend"], "columns": 4}}
    spec = {**fitted(drawn, FIGURE_WIDTH), "config": config}
    return str(vl_convert.vegalite_to_svg(spec))


def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. Bundling takes seconds, so the user's cache keeps it."""
    from importlib import metadata

    path = _cache() / f"vega-{metadata.version('vl-convert-python')}.js"
    with suppress(OSError, UnicodeDecodeError):
        if cached := path.read_text(encoding="utf-8"):
            return cached
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    bundle = bundle.replace("</script", "<\\/script")
    script = f"(() => {{\n{bundle}\n}})();\n"  # in a function, so that its names stay local
    with suppress(OSError):  # without a writable home the report only takes longer
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(script, encoding="utf-8")
        temporary.replace(path)
    return script


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedkd"
