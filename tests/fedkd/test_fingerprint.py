"""Hashes of objects of a session: equal for equal code and data, in every process; different for any change."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

import fedkd
from fedkd import fingerprint

CODE = """
WIDTH = {width}
def size(): return WIDTH + {plus}
class Net:
    def __init__(self, shape, classes={classes}): self.width = size()
def make(shape, classes): return [Net(n) for n in shape]
"""


def made(width=8, plus=0, classes=2):
    module = {"__name__": "__main__"}
    exec(CODE.format(width=width, plus=plus, classes=classes), module)
    return module["make"]


def test_equal_code_has_an_equal_hash():
    assert fingerprint.of(made()) == fingerprint.of(made())


@pytest.mark.parametrize("change", [{"width": 9}, {"plus": 1}, {"classes": 3}])
def test_a_change_in_what_a_function_uses_changes_it(change):
    assert fingerprint.of(made(**change)) != fingerprint.of(made())


def test_another_process_gives_the_same():
    code = f"import sys; from fedkd import fingerprint\nexec({CODE.format(width=8, plus=0, classes=2)!r})\n"
    code += "sys.stdout.write(fingerprint.of(make))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there == fingerprint.of(made())


def test_data_count_by_their_values():
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    one, same, other = (fedkd.Data(train=(values, y)) for values in (x, x.copy(), x + 1))
    assert fingerprint.of(lambda root: one) == fingerprint.of(lambda root: same) != fingerprint.of(lambda root: other)


def test_tensors_partials_and_circles_are_looked_into():
    circle = []
    circle.append(circle)
    for one, other in [(torch.zeros(2), torch.ones(2)), (functools.partial(made(), 1), functools.partial(made(), 2))]:
        assert fingerprint.of(one) == fingerprint.of(one) != fingerprint.of(other)
    assert fingerprint.of(circle) == fingerprint.of(circle)
