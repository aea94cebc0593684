"""JSON from files: a value, or a ValueError."""

import pytest

from fedkd import strict_json
from fedkd.errors import FolderError
from fedkd.record import ledger
from simulations.run import run_folder


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{", b"\xff", '{"a": 1}]', "9" * 5000])
def test_whatever_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".*"):
        strict_json.parse(text)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"'])
def test_a_mapping_is_an_object_and_nothing_else(text):
    with pytest.raises(ValueError, match="expected an object"):
        strict_json.mapping(text)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert strict_json.read(path, 8) == {"a": 1}
    with pytest.raises(ValueError, match="more than 7 bytes"):
        strict_json.read(path, 7)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "null"])
def test_a_run_folder_with_a_strange_file_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    for look in (run_folder.info, ledger.read):
        with pytest.raises(FolderError, match=r"run\.json is missing or unreadable"):
            look(tmp_path)
    with pytest.raises(FolderError, match="line 1 is damaged"):
        ledger.rows(tmp_path / "metrics.jsonl")
