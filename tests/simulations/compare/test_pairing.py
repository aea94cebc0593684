"""Fair pairing, proven from the records of real runs: strategies of one setting and seed begin alike."""

from pathlib import Path

import pytest

from fedkd.configuration import compose
from simulations.analysis import run_record
from simulations.run import runs
from simulations.run.options import Options

WORDS = (
    "data=digits",
    "clients=4",
    "clients_per_round=2",
    "rounds=3",
    "train.steps=2",
    "students=mlp",
    "engine=inline",
)
STRATEGIES = ("fedavg", "fedgen", "knfu-table", "scaffold", "local")


def played(folder: Path, strategy: str, *more: str) -> run_record.RunRecord:
    resolved = compose.resolve([*WORDS, f"strategy={strategy}", *more])
    runs.start(resolved, runs=folder, out=folder / strategy, options=Options(quiet=True))
    return run_record.read("", strategy, resolved.config.seed, folder / strategy)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {strategy: played(folder, strategy, "seed=3").pairing for strategy in STRATEGIES}


@pytest.mark.parametrize("fact", ["partition_sha256", "initial_sha256", "batches_sha256", "cohorts"])
def test_strategies_share_split_first_weights_batches_and_cohorts(pairs, fact):
    assert all(pair[fact] for pair in pairs.values())
    assert all(pair[fact] == pairs["fedavg"][fact] for pair in pairs.values())


def test_another_seed_shares_none_of_them(pairs, tmp_path):
    other = played(tmp_path, "fedavg", "seed=4").pairing
    assert all(other[fact] != pairs["fedavg"][fact] for fact in other)


def test_students_of_two_architectures_are_each_on_record(tmp_path):
    words = ("seed=3", "students={mlp: 0.5, fedgen-cnn: 0.5}")
    one, two = (played(tmp_path, strategy, *words).pairing for strategy in ("knfu-table", "feddistill"))
    assert set(one["initial_sha256"]) >= {"mlp", "fedgen-cnn"}
    assert one["initial_sha256"] == two["initial_sha256"]


def test_runs_on_validation_share_it_too_and_have_another_split(pairs, tmp_path):
    one, two = (played(tmp_path, s, "seed=3", "evaluate.on=validation") for s in ("fedavg", "fedgen"))
    assert one.pairing["partition_sha256"] == two.pairing["partition_sha256"] != pairs["fedavg"]["partition_sha256"]
    assert one.partition["recipe"]["validation"] == 0.2
