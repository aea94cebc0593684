"""Every strategy with students on data sets, for two rounds of the whole way.

In the suite: on digits, each strategy with one student or two, and each student with several strategies.
FEDKD_SMOKE=all takes every pair, and adds the data sets found below FEDKD_DATA: that takes long.
"""

import itertools
import math
import os

import pytest
import tiny

from fedkd import rounds
from fedkd.configuration import compose
from fedkd.data import sources
from fedkd.errors import DataError
from simulations import assemble
from simulations.engines.inline import Inline

SMALL = ("partition=iid", "clients=4", "clients_per_round=3", "rounds=2", "train.steps=2", "evaluate.pooled_every=2")
FEWER = ("partition.samples=400",)  # of the large data sets
PUBLIC = ("proxy=held-out", "proxy.size=20")
IS_WHOLE = os.environ.get("FEDKD_SMOKE") == "all"
DATA = tuple(sources.SOURCES) if IS_WHOLE else ("digits",)
PAIRS = list(itertools.product(compose.options("strategy"), tiny.STUDENTS))
TURNS = len(tiny.STUDENTS) - 1  # coprime with the number of students: each has its turn
MATRIX = PAIRS if IS_WHOLE else PAIRS[::TURNS]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(("strategy", "student"), MATRIX)
def test_every_strategy_plays_every_student_on_every_data_set(strategy: str, student: str, data: str) -> None:
    words = [f"data={data}", *SMALL, *(FEWER if data != "digits" else ()), f"strategy={strategy}"]
    config = compose.resolve([*words, *PUBLIC, f"students={student}"]).config
    try:
        made = assemble.assemble(config)
    except DataError as error:
        pytest.skip(f"{data} is not here: {error.what}")
    state = rounds.begin(made.experiment)
    for _ in range(config.rounds):
        played = rounds.run_round(made.experiment, Inline(made.site), state)
        state = played.state
        assert not played.failures
    accuracy = played.row["accuracy"]
    assert 0 <= accuracy["clients"]["mean"] <= 1
    assert math.isfinite(accuracy.get("loss", 0.0))
    assert all(math.isfinite(value) for value in played.row["terms"].values())
