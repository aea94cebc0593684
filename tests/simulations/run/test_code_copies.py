import json
from types import SimpleNamespace

import pytest

from fedkd import extensions
from simulations.cli import main as cli

FILE = """
from torch import nn

import fedkd


@fedkd.register.student("my-net")
def my_net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes))
"""
SMALL = ["students=my-net", "data=digits", "clients=4", "train.steps=2"]
WORDS = [*SMALL, "strategy=fedgen", "strategy.generator_steps=2", "rounds=3"]


def fedkd(*args):
    """A command in a process that has executed no file before."""
    with extensions.kept():
        return cli.main([*args, "--quiet"])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    place = tmp_path_factory.mktemp("user_code")
    (place / "mine.py").write_text(FILE)
    py = ["--py", str(place / "mine.py"), "engine=inline"]
    assert fedkd("run", *py, *WORDS, "--out", str(place / "run")) == 0
    return SimpleNamespace(place=place, run=place / "run", py=py)


def test_a_run_keeps_a_copy_and_its_hash(ran):
    with extensions.kept():
        file = extensions.executed("mine.py", FILE)
    assert (ran.run / "code" / "mine.py").read_text() == FILE
    assert json.loads((ran.run / "run.json").read_text())["user_code"] == {"mine.py": file.sha256}


def test_dropout_of_a_users_student_gives_the_same_bytes_again(ran, capsys):
    assert fedkd("run", *ran.py, *WORDS, "--out", str(ran.place / "again")) == 0
    assert (ran.place / "again" / "metrics.jsonl").read_bytes() == (ran.run / "metrics.jsonl").read_bytes()


def test_another_process_resumes_and_exports_with_the_copy(ran, capsys):
    assert fedkd("resume", str(ran.run)) == 0
    assert fedkd("export", str(ran.run), "--out", str(ran.place / "net.safetensors")) == 0


def test_another_file_is_refused(ran, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FILE + "# changed")
    assert fedkd("resume", str(ran.run), "--py", str(tmp_path / "mine.py")) != 0
    assert "is not the code that this run began with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "what"),
    [(lambda path: path.write_text(FILE + "# edited"), "is not the code"), (lambda path: path.unlink(), "is missing")],
)
def test_an_edited_or_missing_copy_is_refused(ran, change, what, capsys):
    copy = ran.run / "code" / "mine.py"
    try:
        change(copy)
        assert fedkd("resume", str(ran.run)) != 0
        assert what in capsys.readouterr().err
    finally:
        copy.write_text(FILE)


def test_a_comparison_runs_it_in_its_children(ran, capsys):
    words = [*ran.py, *SMALL, "strategy=fedavg,fedprox", "seed=1", "rounds=1"]
    assert fedkd("compare", *words, "--out", str(ran.place / "compare")) == 0


def test_a_run_starts_from_a_file_trains_its_head_alone_and_refuses_another_file(tmp_path, capsys):
    from safetensors.torch import save_file

    from fedkd.models import students

    file = tmp_path / "lenet.safetensors"
    save_file(students.make("lenet5", (1, 8, 8), 10).state_dict(), file)
    words = ["data=digits", "students=lenet5", f"students.weights={file}", "strategy=fedavg", "engine=inline"]
    small = ["clients=3", "train.steps=2", "rounds=1"]
    assert fedkd("run", *words, *small, "students.train=head", "--out", str(tmp_path / "head")) == 0
    row = json.loads((tmp_path / "head" / "metrics.jsonl").read_text())
    assert row["bytes"]["up"] == {"weights": 3 * 4 * (84 + 1) * 10}, "the head of each client alone"
    save_file(students.make("lenet5", (1, 8, 8), 10).state_dict(), file)
    assert fedkd("resume", str(tmp_path / "head")) != 0
    assert "is not the file that this run began with" in capsys.readouterr().err
    for change in ({"students.weights": "none.safetensors"}, {"strategy": "fedrep", "students.train": "head"}):
        more = [f"{key}={value}" for key, value in change.items()]
        kept = [word for word in words if word.partition("=")[0] not in change]
        assert fedkd("run", *kept, *small, *more, "--out", str(tmp_path / "no")) in (2, 3)
