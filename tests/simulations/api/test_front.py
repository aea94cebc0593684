"""fedkd.run and its friends: the engine of the command line, in this process."""

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import fedkd
from fedkd import extensions
from fedkd.errors import CheckpointError, ConfigError, DataError, FolderError
from simulations.api import frames, front
from simulations.cli import main as cli
from simulations.report import vega
from simulations.run import driver

SMALL = {"clients": 3, "rounds": 2, "train": {"steps": 2}, "engine": "inline", "evaluate.probe": 4}
LINE = ["strategy=fedavg", "clients=3", "rounds=2", "train.steps=2", "engine=inline", "evaluate.probe=4"]
X = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)
Y = np.where(X[:, 0] > 0, "yes", "no")


class MyNet(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.hidden, self.head = nn.Linear(shape[0], 4), nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.hidden(x).relu())


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    place = tmp_path_factory.mktemp("api")
    return fedkd.run("strategy=fedavg", out=place / "run", **SMALL)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    place = tmp_path_factory.mktemp("own")
    with extensions.kept():
        yield fedkd.run(students=MyNet, data=fedkd.Data(train=(X, Y)), out=place / "run", strategy="fedavg", **SMALL)


def test_a_run_has_the_bytes_of_the_command_line(ran, tmp_path, capsys):
    assert cli.main(["run", *LINE, "--out", str(tmp_path / "cli"), "--quiet"]) == 0
    for name in ("metrics.jsonl", "clients.jsonl"):
        assert (ran.folder / name).read_bytes() == (tmp_path / "cli" / name).read_bytes()
    infos = [json.loads((place / "run.json").read_text()) for place in (ran.folder, tmp_path / "cli")]
    assert infos[0].keys() == infos[1].keys()
    assert infos[0]["config"] == infos[1]["config"]


def test_rounds_one_by_one_have_its_rows(ran):
    rows = [json.loads(line) for line in (ran.folder / "metrics.jsonl").read_text().splitlines()]
    assert [json.loads(json.dumps(done.row)) for done in fedkd.iterate("strategy=fedavg", **SMALL)] == rows


def test_a_run_is_silent_without_a_terminal_and_leaves_threads_alone(tmp_path, capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    fedkd.run(out=tmp_path / "run", **{**SMALL, "rounds": 1})
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert capsys.readouterr().out == ""
    fedkd.run(out=tmp_path / "shown", quiet=False, **{**SMALL, "rounds": 1})
    assert "done" in capsys.readouterr().out


def test_its_folder_as_numbers_and_tables(ran):
    assert ran.state == "done"
    assert ran.accuracy == ran.rows()[-1]["accuracy.global"] == ran.summary["accuracy"]["last"]
    assert ran.config["train"]["steps"] == 2
    assert len(ran.frame()) == 2
    assert len(ran.frame("clients")) == 6
    assert ran.frame("failures").empty
    with pytest.raises(ConfigError, match="no table 'round'"):
        ran.rows("round")
    assert "fedavg" in repr(ran)
    assert "fedavg" in ran._repr_html_()


@pytest.mark.parametrize("what", ["accuracy", "clients"])
def test_its_charts_are_whole(ran, what):
    assert ran.plot(what).to_dict()["data"]


def test_a_missing_library_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pandas is not installed.*\n.*fedkd\[notebook\]"):
        frames.frame([])


def test_own_objects_run_in_this_process(own):
    assert own.config["students"]["name"] == "my-net"
    info = json.loads((own.folder / "run.json").read_text())
    assert sorted(info["session"]) == ["data my-data", "student my-net"]
    assert own.evaluate()["samples"] == own.confusion().sum() == 17


@pytest.mark.parametrize("client", [None, 1])
def test_a_student_is_a_module_that_does_as_well_as_the_run(own, client):
    student = own.student(client)
    assert not student.training
    assert student(student.preprocess(X[:2].tolist())).shape == (2, 2)
    served = own._served(client)
    index = served.held_out
    logits = student(student.preprocess(served.assembly.site.test.x[index]))
    torch.testing.assert_close(logits, served.logits)


def test_a_student_judges_other_samples(own):
    numbers = own.evaluate(X, Y)
    assert numbers["samples"] == 90
    assert own.evaluate(X, (Y == "yes").astype(int)) == numbers
    with pytest.raises(DataError, match="samples are"):
        own.evaluate(X[:, :3], Y)
    with pytest.raises(DataError, match="come together"):
        own.evaluate(X)


def test_pixels_that_no_byte_holds_are_refused(ran):
    student = ran.student()
    with pytest.raises(DataError, match="samples hold 0 to 256"):
        student.preprocess(np.full((1, 1, 8, 8), 256) * np.eye(8, dtype=int))
    assert student.preprocess(np.zeros((2, 1, 8, 8), np.uint8)).min() == -1


def test_another_session_needs_the_same_objects(own):
    with extensions.kept():
        extensions._registered.clear()
        with pytest.raises(CheckpointError, match=r"student 'my-net' came from a Python session.*\n.*fedkd.load"):
            fedkd.load(own.folder).student()
        changed = fedkd.load(own.folder, students=MyNet, data=fedkd.Data(train=(X + 1, Y)))
        with pytest.raises(CheckpointError, match="data 'my-data' is not the one"):
            changed.resume()
        assert fedkd.load(own.folder, students=MyNet, data=fedkd.Data(train=(X, Y))).resume().accuracy == own.accuracy


def test_the_command_line_says_what_is_missing(own, capsys):
    with extensions.kept():
        extensions._registered.clear()
        assert cli.main(["resume", str(own.folder)]) == 6
    assert "its student 'my-net' came from a Python session" in capsys.readouterr().err


def test_ray_cannot_get_them(tmp_path):
    with extensions.kept(), pytest.raises(ConfigError, match="Ray's workers do not have"):
        fedkd.run("engine=ray", students=MyNet, data="wine", out=tmp_path / "run")


def test_ctrl_c_saves_and_is_passed_on(tmp_path, monkeypatch):
    played = driver.rounds.run_round

    def interrupted(experiment, engine, state, watch):
        if state.round == 1:
            raise driver.Stop
        return played(experiment, engine, state, watch)

    monkeypatch.setattr(driver.rounds, "run_round", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"saved after round 1; go on: fedkd.load"):
        fedkd.run("strategy=fedavg", out=tmp_path / "run", **SMALL)
    monkeypatch.undo()
    assert len(fedkd.load(tmp_path / "run").resume(rounds="+1").rows()) == 3


def test_errors_have_the_words_of_the_command_line():
    with pytest.raises(ConfigError, match=r"unknown key 'strateg'.*\n.*did you mean 'strategy'"):
        fedkd.run(strateg="fedgen")


def test_a_wrong_folder_is_a_sentence(ran, tmp_path):
    with pytest.raises(FolderError, match="there is no run"):
        fedkd.load(tmp_path)
    with pytest.raises(FolderError, match="is a folder of 1 runs and comparisons"):
        fedkd.load(ran.folder.parent)
    with pytest.raises(ConfigError, match="is no object of a session"):
        fedkd.load(ran.folder, rounds=3)


def test_a_comparison_with_own_objects(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vega, "svg", lambda chart: "")  # drawing takes seconds
    with extensions.kept():
        study = fedkd.compare(
            {"clients": 3, "rounds": 1, "train": {"steps": 1}},
            students=MyNet,
            data=fedkd.Data(train=(X, Y)),
            strategy=["fedavg", "local"],
            seed=range(2),
            out=tmp_path / "study",
        )
    assert capsys.readouterr().out == ""
    assert study == fedkd.load(tmp_path / "study")
    assert len(study.runs) == len(study.rows()) == len(study.frame()) == 4
    assert study.failed == ()
    assert "fedavg" in " ".join(study.verdict)
    assert study.report().name == "report.html"
    assert study.plot().to_dict()["facet"]
    with pytest.raises(ConfigError, match="there is no chart 'curve'"):
        study.plot("curve")
    assert "4 of 4 runs" in repr(study)
    assert "<table>" in study._repr_html_()


def test_a_partition_shows_who_holds_what():
    split = fedkd.partition("partition.alpha=0.1", clients=4)
    assert split.counts.shape == (4, 10)
    assert len(split.frame()) == 40
    assert split.facts["sha256"] in str(split)
    assert "<th>client</th>" in split._repr_html_()
    assert split.plot().to_dict()["encoding"]


def test_docstrings_show_what_happens():
    assert doctest.testmod(front).failed == 0


def test_a_mistake_is_told_before_torch_is_loaded():
    code = "import sys, fedkd\ntry: fedkd.run(round=3)\n"
    code += "except fedkd.errors.ConfigError: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"
