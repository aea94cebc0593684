import pickle
import sys
import textwrap

import pytest

from fedkd import extensions, register
from fedkd.configuration import compose, plugins
from fedkd.errors import ConfigError

NET = """
import fedkd

@fedkd.register.student("my-net")
def my_net(shape, classes):
    raise NotImplementedError
"""


@pytest.fixture(autouse=True)
def _kept():
    with extensions.kept():
        yield


@pytest.fixture
def file(tmp_path):
    def write(text, name="mine.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return tmp_path / name

    return write


def test_what_a_file_registers_is_an_option_of_its_group(file):
    assert "my-net" not in compose.options("students")
    extensions.load(file(NET))
    assert "my-net" in compose.options("students")
    resolved = compose.resolve(["students=my-net"])
    assert resolved.config.students.name == "my-net"
    assert resolved.sources["students.name"] == "mine.py"


def test_the_code_is_part_of_the_hash_of_a_configuration(file, tmp_path):
    before = compose.resolve([]).digest()
    extensions.load(file(NET))
    first = compose.resolve([]).digest()
    with extensions.kept():
        extensions._files.clear()
        extensions._registered.clear()
        extensions.load(file(NET + "\n# changed"))
        second = compose.resolve([]).digest()
    assert len({before, first, second}) == 3


def test_a_file_is_executed_once_and_by_its_pickle_in_another_process(file):
    loaded = extensions.load(file(NET))
    assert extensions.load(file(NET)) == loaded
    sent = pickle.dumps(loaded)
    del sys.modules[loaded.module]
    extensions._files.clear()
    extensions._registered.clear()
    assert pickle.loads(sent) == loaded  # noqa: S301  ours
    assert extensions.names("student") == ("my-net",)
    assert loaded.module in sys.modules


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("def broken(:\n", "SyntaxError", 1),
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero", 2),
        ("import nothing_of_that_name\n", "ModuleNotFoundError", 1),
        ("raise SystemExit(3)\n", "SystemExit: 3", 1),
    ],
)
def test_an_error_of_the_file_is_shown_as_the_users_own(file, text, what, line):
    path = file(text)
    with pytest.raises(ConfigError, match="your file raises") as caught:
        extensions.load(path)
    assert what in caught.value.what
    assert caught.value.where == f"{path}:{line}"


def test_a_file_that_fails_halfway_leaves_nothing_behind(file):
    with pytest.raises(ConfigError):
        extensions.load(file(NET + "\n1 / 0"))
    assert extensions.names("student") == ()
    assert extensions.files() == ()


@pytest.mark.parametrize("name", ["My-Net", "", "a b", "../x", "1net", "x" * 51, None])
def test_a_name_that_no_command_line_could_give_is_refused(name):
    with pytest.raises(ConfigError, match="is no name for a student"):
        register.student(name)(lambda shape, classes: None)


def test_a_name_of_ours_or_of_another_file_is_refused(file):
    extensions.load(file(NET))
    with pytest.raises(ConfigError, match="two students called 'my-net'"):
        extensions.load(file(NET + "\n", "other.py"))
    extensions.load(file(NET.replace("my-net", "mlp"), "third.py"))
    with pytest.raises(ConfigError, match="fedkd has its own student 'mlp'") as caught:
        compose.options("students")
    assert caught.value.where == "third.py"


def test_two_files_of_one_name_are_refused_because_a_run_keeps_both(file, tmp_path):
    extensions.load(file(NET))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "mine.py").write_text("x = 1")
    with pytest.raises(ConfigError, match=r"two files are called mine\.py"):
        extensions.load(tmp_path / "below" / "mine.py")


def test_a_session_may_register_a_name_again():
    register.student("mine")(dict)
    register.student("mine")(list)
    assert extensions.find("student", "mine").value is list


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not UTF-8"),
        (lambda path: path.write_bytes(b"#" * (extensions.MOST_BYTES + 1)), "bytes, at most"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_what_is_no_python_file_is_refused(tmp_path, make, what):
    make(tmp_path / "mine.py")
    with pytest.raises(ConfigError, match=what):
        extensions.load(tmp_path / "mine.py")


HALVES = """
from dataclasses import dataclass

from clients.supervised import Supervised
from strategies.fedavg import FedAvg


class Server(FedAvg):
    pass


class Mine(Supervised):
    @dataclass(frozen=True, kw_only=True)
    class Config(Supervised.Config):
        pull: float = 0.5
"""


def test_the_only_halves_of_a_file_have_its_name(file):
    extensions.load(file(HALVES, "fed_new.py"))
    assert plugins.strategy("fed-new").__name__ == "Server"
    assert plugins.settings() == {"fed-new": {"name": "fed-new", "client": "fed-new"}}
    strategy = compose.resolve(["strategy=fed-new", "strategy.pull=2.0"]).config.strategy
    assert (strategy["name"], strategy["client"], strategy["pull"], strategy["setting"]) == (
        "fed-new",
        "fed-new",
        2.0,
        "fed-new",
    )


def test_a_decorated_strategy_names_its_client(file):
    text = HALVES.replace("class Server", '@fedkd.register.strategy("other", client="fedprox")\nclass Server')
    extensions.load(file("import fedkd\n" + text, "halves.py"))
    assert plugins.settings() == {"other": {"name": "other", "client": "fedprox"}}
    assert "halves" in plugins.names("clients")


def test_a_strategy_that_is_none_is_refused(file):
    extensions.load(file("import fedkd\n\n@fedkd.register.strategy('odd')\ndef odd():\n    pass\n"))
    with pytest.raises(ConfigError, match=r"the strategy 'odd' of mine\.py is no subclass of Strategy"):
        plugins.strategy("odd")


def test_an_edited_file_replaces_itself_in_a_session(file):
    first = extensions.load(file(NET))
    second = extensions.load(file(NET.replace("my-net", "your-net")))
    assert first != second
    assert extensions.names("student") == ("your-net",)
    assert extensions.files() == (second,)
