"""What `fedkd deploy init` is asked: all that is wrong is told at once, and nothing is made."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.configuration import compose
from fedkd.errors import ConfigError
from simulations.deploy import init, manifest, names, request
from simulations.run.options import Deploy


def make(folder: Path, devices: str, **more) -> manifest.Deployment:
    words = (str(folder), *more.pop("words", ()))
    return init.make(
        Deploy(action="init", arguments=words, **{"address": "fl.example.org", "devices": devices, **more})
    )


def mistakes(call) -> dict[str, str]:
    """What is wrong, and how to mend it."""
    with pytest.raises(ConfigError) as caught:
        call()
    return {mistake.what: mistake.mend for mistake in caught.value.mistakes}


def test_a_refused_request_makes_nothing_and_tells_everything(tmp_path):
    found = mistakes(
        lambda: make(
            tmp_path / "edge",
            "edge-1:mpl,Edge_2,edge-1",
            address="https://fl.example.org",
            port=0,
            memory_mb=0,
        )
    )
    assert set(found) == {
        "--address https://fl.example.org",
        "--port 0",
        "--memory-mb 0",
        "device 'Edge_2'",
        "device 'edge-1' is listed twice",
        "device 'edge-1' has student 'mpl'",
        "device 'Edge_2' has no student",
        "device 'edge-1' has no student",
    }
    assert "did you mean 'mlp'" in found["device 'edge-1' has student 'mpl'"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("devices", "words", "what"),
    [
        ("3", ["stratgy=fedgen"], "unknown key 'stratgy'"),
        ("3", ["strategy=fedgem"], "strategy = fedgem"),
        ("3", ["rounds=0"], "rounds = 0"),
        ("3", ["nothing.yaml"], "there is no such file"),
        ("3", ["clients=4"], "clients = 4"),
        ("3", ["clients_per_round=4"], "clients_per_round"),
        ("a:mlp,b:lenet5", ["students=[mlp, mlp]"], "students are also given per device"),
        ("a:mlp,b", [], "device 'b' has no student"),
        ("a:", [], "device 'a' has student ''"),
        ("", [], "device ''"),
        ("a,,b", [], "device ''"),
        ("0", [], "--devices 0"),
        ("10001", [], "--devices 10001"),
        ("99999999", [], "--devices 99999999"),
        (",".join(["a" * 64]), [], f"device '{'a' * 64}'"),
    ],
)
def test_each_mistake_is_named(tmp_path, devices, words, what):
    found = mistakes(lambda: make(tmp_path / "edge", devices, words=words))
    assert any(text.startswith(what) for text in found), found
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_mistake(tmp_path):
    make(tmp_path / "a", "3", words=["clients=3"])
    make(tmp_path / "b", "10", words=["preset=fedgen-mnist"])  # its 20 clients give way
    assert manifest.load(tmp_path / "b").run_overrides() == ["preset=fedgen-mnist", "clients=10"]
    make(tmp_path / "c", " a:mlp , b:mlp ", words=["students=lenet5", "strategy=fedmd", "proxy=held-out"])


ST_NAME = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@given(names_=st.lists(ST_NAME, min_size=1, max_size=6, unique=True), with_students=st.booleans(), data=st.data())
def test_any_list_of_devices_is_read(names_, with_students, data):
    students = compose.options("students") if with_students else [""]
    items = [(name, data.draw(st.sampled_from(students))) for name in names_]
    text = ",".join(f"{name}:{student}" if student else name for name, student in items)
    if text.isdigit():
        return  # that many devices
    found, wrong = request.parse(text)
    assert wrong == []
    assert [(device.client, device.name, device.student or "") for device in found] == [
        (client, *item) for client, item in enumerate(items)
    ]


@given(text=st.text(st.sampled_from("ab1-,:_A \né"), max_size=12))
def test_what_is_read_without_mistake_is_a_right_list(text):
    found, wrong = request.parse(text)
    if not wrong:
        assert found
        assert all(not names.device(device.name) for device in found)
        assert len({device.name for device in found}) == len(found)


@given(
    known=st.lists(ST_NAME | st.sampled_from(["edge-1", "edge-2", "edge-5"]), max_size=5, unique=True),
    count=st.integers(1, 6),
)
def test_a_number_of_devices_finds_free_names(known, count):
    before = [manifest.DeviceEntry(name, client, "") for client, name in enumerate(known)]
    found, wrong = request.parse(str(count), before)
    assert wrong == []
    assert len({*known, *(device.name for device in found)}) == len(known) + count
    assert [device.client for device in found] == list(range(len(known), len(known) + count))
