"""The page of the rules has all of them, and a failure's message is short."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conformance import failures


def test_each_rule_has_a_row_on_the_page_and_each_row_a_test():
    files = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    tests = [name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)]
    assert set(tests) == failures.rules().keys()


def test_a_message_names_rule_classes_mend_and_page_and_cuts_what_was_found():
    with pytest.raises(AssertionError) as caught:
        raise AssertionError("\n".join(["differs" + 1000 * "x"] * 50))
    call = SimpleNamespace(params={"algorithm": ("strategy=fedprox",)})
    told = failures.told("test_it_works_with_one_reply", call, caught.value)
    assert "rule   it works with one reply\n" in told
    assert "FedAvg (strategies/fedavg.py); FedProx (clients/fedprox.py)" in told
    assert "mend   Do not divide by" in told
    assert "docs/conformance.md#the-server-half" in told
    assert len(told.splitlines()) < 15
