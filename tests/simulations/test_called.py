"""Runs are called what was chosen, wherever they are shown; older folders too, which only name the halves."""

import json
import shutil

import pytest

from fedkd.configuration import compose
from fedkd.record import ledger
from simulations.cli import listing
from simulations.report import gather
from simulations.run import console_text, runs
from simulations.run.options import Options

SMALL = ("partition=iid", "clients=2", "rounds=2", "train.steps=1", "evaluate.probe=8", "engine.name=inline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("called")
    for name in ("fedprox", "fedavg"):
        runs.start(compose.resolve([*SMALL, f"strategy={name}"]), runs=place, options=Options(runs=place, quiet=True))
    return place


def older(run, place):
    """A copy as it was written before settings were."""
    old = place / run.name
    shutil.copytree(run, old)
    info = ledger.read(run).run
    del info["halves"]
    (old / "run.json").write_text(json.dumps({**info, "strategy": "fedavg"}))
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (old / "config.yaml").write_text("".join(line for line in lines if "setting:" not in line))
    return old


def called(place):
    """By name: runs of the same second have no order."""
    return sorted(row["strategy"] for row in runs.listing(place))


def test_a_run_has_the_name_of_its_setting_in_its_folder_lists_and_tables(folder):
    assert called(folder) == ["fedavg", "fedprox"]
    prox = next(path for path in folder.iterdir() if "-fedprox-" in path.name)
    assert (ledger.info(prox)["strategy"], ledger.info(prox)["halves"]) == ("fedprox", ["fedavg", "fedprox"])
    assert any(row["about"].startswith("fedprox") for row in listing.of_runs(folder))
    assert "what    fedprox   digits" in "\n".join(console_text.portrait(runs.show(prox)))
    assert {row["strategy"] for row in ledger.load_runs(prox)} == {"fedprox"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (words,) = EventAccumulator(str(prox / "tb")).Reload().Tensors("run")
    assert b"strategy fedprox" in words.tensor_proto.string_val[0]


def test_fedprox_is_not_taken_for_the_baseline(folder, tmp_path):
    for place in (folder, tmp_path):
        if place is tmp_path:
            for run in folder.iterdir():
                older(run, tmp_path)
        prox_first = sorted(map(str, place.iterdir()), key=lambda path: "-fedprox-" not in path)
        question, members = gather.collect(prox_first, place)
        assert question.methods == ("fedprox", "fedavg")
        assert question.baseline == "fedavg"
        assert called(place) == ["fedavg", "fedprox"]
        assert {member.method: member.info["strategy"] for member in members} == {
            "fedprox": "fedprox",
            "fedavg": "fedavg",
        }


def test_an_older_run_is_the_same_run(folder, tmp_path):
    run = next(path for path in folder.iterdir() if "-fedprox-" in path.name)
    assert compose.from_yaml_file(older(run, tmp_path) / "config.yaml").digest() == ledger.info(run)["config"]


def test_runs_of_a_comparison_are_found_and_carry_their_configuration(folder, tmp_path):
    comparison = tmp_path / "skew"
    shutil.copytree(folder, comparison / "runs")
    shutil.copytree(folder, comparison / "tuning")
    shutil.copytree(next(folder.iterdir()), comparison / "runs" / "one.broken-1")
    (comparison / ledger.PLAN).write_text("")
    for place in (comparison, tmp_path):
        rows = ledger.load_runs(place)
        assert [(row["comparison"], row["round"]) for row in rows] == [("skew", 1), ("skew", 2)] * 2
        assert {(row["strategy"], row["config.strategy.client"]) for row in rows} == {
            ("fedprox", "fedprox"),
            ("fedavg", "supervised"),
        }
        assert {row["config.train.steps"] for row in rows} == {1}
    assert {row["comparison"] for row in ledger.load_runs(folder)} == {None}
