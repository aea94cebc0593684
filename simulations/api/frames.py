"""Tables and pictures for notebooks, by pandas and altair: the extra `notebook`."""

import html
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedkd.errors import ConfigError

if TYPE_CHECKING:
    import altair
    import pandas


def frame(rows: Sequence[Mapping[str, Any]]) -> "pandas.DataFrame":
    """Rows as a data frame. Raises ConfigError if pandas is missing."""
    return _library("pandas").DataFrame(list(rows))


def chart(spec: Mapping[str, Any]) -> "altair.TopLevelMixin":
    """A Vega-Lite specification as a chart that shows itself in a notebook. Raises ConfigError without altair."""
    return _library("altair").Chart.from_dict(dict(spec))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """An HTML table; all text is escaped."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        mend = "pip install 'fedkd[notebook]'; the rows themselves: .rows(...)"
        raise ConfigError(f"{name} is not installed", where="the extra `notebook`", mend=mend) from None
