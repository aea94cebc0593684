"""The files of a report: all there, readable by others, and written whole or not at all."""

import csv
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import fabricated
import pytest

from fedkd.errors import FolderError
from simulations import report
from simulations.report import files, page, summary_table, tables, vega


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def few() -> fabricated.Verdict:
    """Without charts: nothing is played."""
    lost = [
        fabricated.replace(each, state="failed", reason="lost", rows=(), clients=()) for each in fabricated.members()
    ]
    return fabricated.verdict([fabricated.replace(each, timings=(), partition={}) for each in lost])


def test_all_files_are_there_and_nothing_else(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "table.csv", "table.tex", "figures/curves.svg"} <= names
    assert not [name for name in names if name.endswith(".new")]


def test_figures_are_svg_without_scripts_or_links(written: Path) -> None:
    figures = sorted((written / "figures").glob("*.svg"))
    assert len(figures) > 10
    for path in figures:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
        assert "svg" in tags
        assert not {"script", "image", "a"} & tags


def test_csv_has_a_row_a_run_and_numbers_as_measured(written: Path) -> None:
    with (written / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 33
    assert 0 < float(rows[0]["clients.mean last"]) < 1
    assert rows[0]["bytes_down"] == str(12 * 80_000)
    assert "seconds" not in rows[0]
    failed = [row for row in rows if row["state"] == "failed"]
    assert [row["reason"] for row in failed] == ["<script>alert(1)</script> out of memory"]


def test_clock_times_stand_apart_from_the_tables_that_must_be_equal(written: Path) -> None:
    with (written / "timings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["seconds_total"]) == pytest.approx(12 * 1.9)
    assert "s/round" not in (written / "table.tex").read_text(encoding="utf-8")
    assert "s/round" in (written / "report.md").read_text(encoding="utf-8")


def test_tex_is_a_table_whose_special_signs_are_escaped(written: Path) -> None:
    text = (written / "table.tex").read_text(encoding="utf-8")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"begin\{tabular\}\{([lr]+)\}", text)
    assert columns
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns.group(1)) - 1 for line in body)
    assert not re.search(r"(?<!\\)[%#_]", "".join(body))
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_markdown_has_the_table_of_the_screen() -> None:
    verdict = fabricated.verdict()
    text = tables.markdown(verdict, ())
    rows = [
        re.sub(r"\\(.)", r"\1", line).strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")
    ]
    for row in summary_table.table(verdict).rows:
        assert [cell.strip() for cell in row] in [[cell.strip() for cell in found] for found in rows]


HOSTILE = ("=cmd\x00\x1b[2J\u2028", "@\u202e\ud800" + "x" * 20_000)


@pytest.fixture(scope="module")
def hostile() -> fabricated.Verdict:
    names = dict(zip(("fedavg", "knfu"), HOSTILE, strict=True))
    found = [
        fabricated.replace(each, method=names[each.method], setting="\x07")
        for each in fabricated.members(settings=("",), methods=tuple(names), seeds=range(2), rounds=3, clients=3)
    ]
    return fabricated.verdict(found, methods=HOSTILE, baseline=HOSTILE[0], settings=("\x07",))


def test_no_name_from_a_file_reaches_a_renderer_raw(hostile: fabricated.Verdict) -> None:
    drawn = files.drawn(hostile)
    pictures = [vega.svg(each) for each in drawn if each.name in ("curves", "clients")]
    html = page.render(hostile, drawn).replace(vega.script(), "")
    for text in (
        *pictures,
        html,
        tables.markdown(hostile, drawn),
        tables.latex(hostile),
        *summary_table.screen(hostile),
    ):
        assert not [sign for sign in text if not sign.isprintable() and sign not in "\n\t\xa0"]
        text.encode()


def test_no_cell_of_a_csv_is_a_formula(hostile: fabricated.Verdict) -> None:
    for text in (tables.comma_separated(hostile), tables.timings(hostile)):
        rows = list(csv.reader(text.splitlines()))
        assert {row[1][:5] for row in rows[1:]} == {"'=cmd", "'@\\u2"}


def test_markdown_escapes_names(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script", text)


def test_full_disk_leaves_the_old_report(tmp_path: Path) -> None:
    report.write(few(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with full_disk(after=2_000), pytest.raises(FolderError, match="disk is full"):
        report.write(few(), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_file_in_the_way_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine", encoding="utf-8")
    with pytest.raises(FolderError, match="in the way"):
        report.write(few(), tmp_path / "report")
    assert (tmp_path / "report").read_text(encoding="utf-8") == "mine"


def test_figures_of_an_earlier_report_go_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("gain.svg", "mine.svg"):
        (tmp_path / "figures" / name).write_text("old", encoding="utf-8")
    report.write(few(), tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.svg"]
