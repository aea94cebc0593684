"""The ledger: rows that survive a kill, bytes that do not depend on the machine."""

import json

import pytest

from fedkd.errors import CheckpointError, FolderError
from fedkd.record import ledger
from fedkd.record.ledger import Ledger


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    book = Ledger(folder)
    lengths = [book.sync()]
    for number in (1, 2, 3):
        book.append("metrics.jsonl", [{"round": number, "accuracy": {"global": number / 10}}])
        book.append("clients.jsonl", [{"round": number, "client": client} for client in (0, 1)])
        lengths.append(book.sync())
    book.close()
    return folder, lengths


def test_a_row_is_on_the_disk_as_soon_as_it_is_appended(tmp_path):
    book = Ledger(tmp_path)
    book.append("metrics.jsonl", [{"round": 1}])
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"round":1}\n'


def test_lines_are_canonical():
    row = {"b": 0.1 + 0.2, "a": float("nan"), "c": {"x": (1, float("-inf"))}, "t": "ü"}
    assert ledger.encode(row) == '{"b":0.30000000000000004,"a":null,"c":{"x":[1,null]},"t":"ü"}\n'.encode()


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_cut_gives_the_bytes_of_that_moment(written, kept):
    folder, lengths = written
    whole = (folder / "metrics.jsonl").read_bytes()
    book = Ledger(folder)
    book.cut(lengths[kept])
    book.close()
    assert (folder / "metrics.jsonl").read_bytes() == whole[: lengths[kept]["metrics.jsonl"]]
    assert [row["round"] for row in ledger.rows(folder / "metrics.jsonl")] == list(range(1, kept + 1))
    assert len(ledger.rows(folder / "clients.jsonl")) == 2 * kept


def test_rows_after_a_cut_follow_it(written):
    folder, lengths = written
    book = Ledger(folder)
    book.cut(lengths[1])
    book.append("metrics.jsonl", [{"round": 22}])
    assert book.sync()["metrics.jsonl"] == (folder / "metrics.jsonl").stat().st_size
    assert [row["round"] for row in ledger.rows(folder / "metrics.jsonl")] == [1, 22]


def test_a_ledger_shorter_than_its_commit_is_refused(written):
    folder, lengths = written
    (folder / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 0 bytes"):
        Ledger(folder).cut(lengths[2])


def test_a_half_written_last_line_is_no_row_and_is_gone_when_writing_goes_on(written):
    folder, _ = written
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"round":4,"accu')
    assert [row["round"] for row in ledger.rows(folder / "metrics.jsonl")] == [1, 2, 3]
    Ledger(folder).append("metrics.jsonl", [{"round": 4}])
    assert [row["round"] for row in ledger.rows(folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_any_other_damaged_line_is_named(written):
    folder, _ = written
    data = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(b"{" + data)
    with pytest.raises(FolderError, match="line 1 is damaged"):
        ledger.rows(folder / "metrics.jsonl")


def test_events_are_history_and_never_cut(written):
    folder, lengths = written
    book = Ledger(folder)
    book.append("events.jsonl", [{"event": "start"}])
    book.cut(lengths[0])
    assert ledger.rows(folder / "events.jsonl") == [{"event": "start"}]


def test_runs_are_read_as_tidy_rows(written):
    folder, _ = written
    (folder / "run.json").write_text(json.dumps({"strategy": "fedavg", "seed": 7, "state": "done"}))
    rows = ledger.load_runs(folder.parent)
    assert rows[1] == {
        "run": folder.name,
        "comparison": None,
        "strategy": "fedavg",
        "seed": 7,
        "state": "done",
        "round": 2,
        "accuracy.global": 0.2,
    }
    assert ledger.load_runs(folder) == rows


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FolderError, match="not a run folder"):
        ledger.read(tmp_path)


def test_a_folder_without_runs_is_no_empty_table(tmp_path):
    with pytest.raises(FolderError, match="there is no run in"):
        ledger.load_runs(tmp_path / "run")
