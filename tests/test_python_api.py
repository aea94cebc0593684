"""docs/python-api.md: its example is taken from the page and run."""

import re
from pathlib import Path

from fedkd import extensions

PAGE = (Path(__file__).parents[1] / "docs" / "python-api.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1].replace("rounds=10", "rounds=1, train={'steps': 2}")
    with extensions.kept():
        exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    assert "'samples': 100" in capsys.readouterr().out
