"""The short forms of a mixture of students, and names that do not exist, before anything is imported."""

import subprocess
import sys

import pytest

from fedkd.configuration import compose
from fedkd.errors import ConfigError


def mix(*words: str):
    return compose.resolve(words).config.students.mix


def problem(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose.resolve(words)
    return " ".join(str(caught.value).split())


def test_shares_may_stand_for_the_group():
    assert mix("students={fedgen-cnn: 0.5, mlp: 1}") == {"fedgen-cnn": 0.5, "mlp": 1.0}


def test_a_list_may_stand_for_the_group():
    assert mix("students=[mlp, lenet5]", "clients=2") == ["mlp", "lenet5"]


def test_the_long_form_is_the_same():
    long = compose.resolve(["students.mix={fedgen-cnn: 0.5, mlp: 1}"])
    assert long.config == compose.resolve(["students={fedgen-cnn: 0.5, mlp: 1}"]).config


def test_a_file_may_use_the_short_form(tmp_path):
    (tmp_path / "my.yaml").write_text("students:\n  mlp: 1\n  lenet5: 3\n  norm: batch\nrounds: 3\n")
    found = compose.resolve([str(tmp_path / "my.yaml")])
    assert found.config.students.mix == {"mlp": 1.0, "lenet5": 3.0}
    assert found.config.rounds == 3


def test_the_students_own_keys_may_stand_beside_shares():
    found = compose.resolve(["students={name: resnet8, mlp: 0.5, norm: group, resnet8: 0.5}"]).config.students
    assert (found.name, found.norm, found.mix) == ("resnet8", "group", {"mlp": 0.5, "resnet8": 0.5})


def test_own_keys_alone_are_no_mixture():
    assert mix("students={norm: group, assign: size}") is None


def test_a_mixture_keeps_the_student_of_the_server():
    found = compose.resolve(["students=resnet8", "students={mlp: 1, lenet5: 1}"]).config.students
    assert (found.name, found.mix) == ("resnet8", {"mlp": 1.0, "lenet5": 1.0})


def test_another_mixture_replaces_the_one_before_and_null_takes_it_away():
    assert mix("students={mlp: 1, lenet5: 1}", "students={resnet8: 1}") == {"resnet8": 1.0}
    assert mix("students={mlp: 1, lenet5: 1}", "students=[mlp, lenet5]", "clients=2") == ["mlp", "lenet5"]
    assert mix("students=[mlp, lenet5]", "students.mix=null") is None


@pytest.mark.parametrize("word", ["students={fedgen-cnn: 0.5, mlp: 0.5}", "students=[mlp, lenet5]"])
def test_what_a_run_writes_is_read_back_as_the_same(tmp_path, word):
    written = compose.resolve([word, "clients=2", "proxy=held-out", "proxy.size=20", "students.assign=size"])
    path = tmp_path / "config.yaml"
    path.write_text(written.to_yaml())
    read = compose.from_yaml_file(path)
    assert read.config == written.config
    assert read.digest() == written.digest()
    assert compose.resolve([str(path), "rounds=7"]).config.students == written.config.students


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("students={fedgen-cnn: 0.5, mpl: 0.5}", "students.mix names mpl (command line) did you mean 'mlp'? must be"),
        ("students=[mlp, lenet]", "students.mix names lenet command line did you mean 'lenet5'?"),
        ("students=mpl", "students = mpl (command line) did you mean 'mlp'?"),
        ("students.name=mpl", "students.name = mpl (command line) did you mean 'mlp'?"),
        ("students={nrom: batch}", "unknown key 'students.nrom' (command line) did you mean 'students.norm'?"),
        ("students={mlp: a}", "students.mix.mlp = a (command line) must be a number"),
        ("students={mlp: null}", "students.mix.mlp = null (command line) must be a number"),
        ("students={mlp: -0.5, lenet5: 1.5}", "students.mix.mlp = -0.5 (command line) must be greater than 0"),
        ("students={mlp: 0, lenet5: 1}", "students.mix.mlp = 0 (command line) must be greater than 0"),
        ("students=[mlp, mlp]", "students.mix = [mlp, mlp] (command line) must be one student per client, 10 in all"),
        ("students=[mlp, 3]", "students.mix.1 = 3 (command line) must be text"),
        ("students.mix=mlp", "students.mix = mlp (command line) must be a mapping or a list, like '{mlp: 0.5"),
        ("students={mlp: .nan}", ".nan is not a finite number"),
        ("proxy=heldout", "proxy = heldout (command line) did you mean 'held-out'?"),
        ("proxy.name=heldout", "proxy.name = heldout (command line) did you mean 'held-out'?"),
        ("proxy.size=0", "proxy.size = 0 (command line) must be at least 1"),
        ("proxy.sise=3", "unknown key 'proxy.sise' (command line) did you mean 'proxy.size'?"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(word, says):
    assert says in problem(word)


def test_a_list_of_students_names_the_line_of_the_file(tmp_path):
    (tmp_path / "my.yaml").write_text("rounds: 3\nstudents: [mlp, lenet]\n")
    assert "my.yaml:2" in problem(str(tmp_path / "my.yaml"))


def test_names_are_checked_without_torch():
    code = (
        "import sys; from fedkd.configuration import compose\n"
        "try: compose.resolve(['students={mpl: 1}', 'proxy.name=heldout'])\n"
        "except Exception as e: print(len(e.mistakes), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["2", "False"], found.stderr


def test_the_keys_of_one_option_are_those_of_its_file():
    assert compose.node("strategy", "fedprox")["client"] == "fedprox"
    assert compose.node("partition", "client-dirichlet") == {"name": "client-dirichlet"}
    assert "variants" not in compose.node("strategy", "fedgen")
