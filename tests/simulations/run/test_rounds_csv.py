import csv
import errno

import pytest

from simulations.run.rounds_csv import RoundsCsv


@pytest.fixture
def table(tmp_path):
    made = RoundsCsv(tmp_path)
    made.restart([])
    return made


def read(table):
    with table.path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_without_a_round_has_no_table(table):
    assert not table.path.exists()


def test_nested_keys_are_columns_and_lists_stay_out(table):
    table.write({"round": 1, "cohort": [0, 1], "accuracy": {"global": 0.5, "clients": {"mean": None}}})
    assert table.path.read_bytes() == b"round,accuracy.global,accuracy.clients.mean\n1,0.5,\n"


def test_rows_are_appended(table):
    table.write({"round": 1})
    number = table.path.stat().st_ino
    table.write({"round": 2})
    assert table.path.read_bytes() == b"round\n1\n2\n"
    assert table.path.stat().st_ino == number


def test_a_late_column_has_empty_cells_above(table):
    table.write({"round": 1, "terms": {"ce": 2.5}})
    table.write({"round": 2, "server": {"distance": 1}})
    assert read(table) == [
        {"round": "1", "terms.ce": "2.5", "server.distance": ""},
        {"round": "2", "terms.ce": "", "server.distance": "1"},
    ]


def test_no_cell_is_a_formula(table):
    table.write({"round": 1, "=1+1": "=cmd()", "delta": -1.5})
    assert read(table) == [{"round": "1", "'=1+1": "'=cmd()", "delta": "-1.5"}]


def test_a_restart_replaces_the_rows(table):
    for number in (1, 2, 3):
        table.write({"round": number, "late": number})
    table.restart([{"round": 1}])
    assert table.path.read_bytes() == b"round\n1\n"
    table.restart([])
    assert not table.path.exists()


def test_a_table_that_is_gone_is_written_again(table):
    table.write({"round": 1})
    table.path.unlink()
    table.write({"round": 2})
    assert table.path.read_bytes() == b"round\n1\n2\n"


def test_a_full_disk_leaves_whole_rows(table, monkeypatch):
    table.write({"round": 1})
    opened = type(table.path).open

    def full(path, *arguments, **more):
        with opened(path, *arguments, **more) as file:
            file.write(b"2")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(table.path), "open", full)
    with pytest.raises(OSError, match="No space"):
        table.write({"round": 2})
    monkeypatch.undo()
    assert table.path.read_bytes() == b"round\n1\n"
