"""`rounds.csv`: the ledger's rounds for spreadsheets, a row per round, a column per number or text.

Lists, such as a cohort or who trusts whom, stay in the ledger. Columns are in the order of their first appearance, so
the same ledger gives the same bytes; a column that appears late has empty cells above.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd import plain_text
from fedkd.record import ledger

NAME = "rounds.csv"


class RoundsCsv:
    """The file of one run. Rows are appended; a new column writes it again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._rows: list[ledger.Row] = []
        self._columns: dict[str, None] = {}

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the file again, from the rows of the ledger. Raises OSError if the disk is full."""
        self._rows = list(map(_flat, rows))
        self._columns = dict.fromkeys(name for row in self._rows for name in row)
        self._rewrite()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append the row of one round. If the disk is full, raises OSError and leaves the earlier rows whole."""
        self._rows.append(_flat(row))
        if self._rows[-1].keys() <= self._columns.keys() and self.path.exists():
            self._append(self._lines(self._rows[-1:]))
        else:
            self._columns |= dict.fromkeys(self._rows[-1])
            self._rewrite()

    def _append(self, text: bytes) -> None:
        length = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(text)
        except OSError:
            os.truncate(self.path, length)
            raise

    def _rewrite(self) -> None:
        if not self._rows:
            self.path.unlink(missing_ok=True)
            return
        beside = self.path.with_name(f".{NAME}.new")
        beside.write_bytes(_text([self._columns]) + self._lines(self._rows))
        beside.replace(self.path)

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        return _text([row.get(name) for name in self._columns] for row in rows)


def _flat(row: Mapping[str, Any]) -> ledger.Row:
    return {name: value for name, value in ledger.flat(row).items() if not isinstance(value, list | tuple)}


def _text(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([plain_text.cell(value) for value in row] for row in rows)
    return text.getvalue().encode(errors="backslashreplace")
