"""The package itself: light to import, its nouns at hand."""

import subprocess
import sys

import pytest

import fedkd


@pytest.mark.parametrize("name", ["Client", "Engine", "Payload", "Problem", "Strategy", "Student", "load_runs"])
def test_nouns_are_at_hand(name: str) -> None:
    assert getattr(fedkd, name).__name__ == name


def test_dir_lists_what_is_found_on_first_use() -> None:
    assert {"run", "load", "compare", "errors", "register"} <= set(dir(fedkd))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        fedkd.Trainer  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, fedkd, fedkd.record.ledger; print({'torch', 'numpy', 'ray', 'torchvision'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
