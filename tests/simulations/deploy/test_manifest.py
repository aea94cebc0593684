"""deployment.yaml and node.yaml: what is written is read back, and what is wrong is told at once, with its line."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.configuration import compose
from fedkd.errors import ConfigError
from simulations.deploy import kit, manifest
from simulations.deploy.manifest import Deployment, DeviceEntry, Kit

ROOT = Path(__file__).parents[3]
KEY = "SHA256:" + "a" * 43
STUDENTS = compose.options("students")


def fingerprint(number: int) -> str:
    return f"SHA256:{number:043d}"


def deployment(folder: Path, *, students: tuple[str | None, ...] = (None, None)) -> Deployment:
    devices = tuple(DeviceEntry(f"edge-{i + 1}", i, fingerprint(i), student) for i, student in enumerate(students))
    return Deployment(folder.resolve(), "fl.example.org", 8000, True, devices, ("strategy=fedgen", "rounds=3"))


def node(folder: Path, **changes) -> Kit:
    folder = folder.resolve()
    values = {
        "schema": 1,
        "name": "edge-1",
        "client": 0,
        "clients": 2,
        "superlink": "fl.example.org:8000",
        "tls": True,
        "student": None,
        "students": None,
        "strategies": None,
        "memory_mb": None,
        "data": None,
        "state": folder / "state",
        "runtime_port": 9094,
        "key": folder / "node_key",
        "ca": folder / "ca.crt",
    }
    return Kit(folder=folder, **{**values, **changes})


def write(folder: Path, text: str, name: str = manifest.FILE) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def mistakes(call) -> dict[str, tuple[str, str]]:
    """What is wrong: where and how to mend it."""
    with pytest.raises(ConfigError) as caught:
        call()
    return {mistake.what: (mistake.where, mistake.mend) for mistake in caught.value.mistakes}


NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
WORDS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: "${" not in text)


@given(names_=st.lists(NAMES, min_size=1, max_size=5, unique=True), words=st.lists(WORDS), data=st.data())
def test_any_deployment_is_read_as_it_was_written(tmp_path_factory, names_, words, data):
    folder = tmp_path_factory.mktemp("deployment")
    order = data.draw(st.permutations(range(len(names_))))
    student = st.sampled_from(STUDENTS) if data.draw(st.booleans()) else st.none()
    devices = [DeviceEntry(n, c, fingerprint(c), data.draw(student)) for n, c in zip(names_, order, strict=True)]
    words = [str(folder / word) if manifest.is_file(word) else word for word in words]
    made = Deployment(
        folder=folder.resolve(),
        address=data.draw(st.sampled_from(["fl.example.org", "192.168.1.10", "2001:db8::1", "localhost"])),
        port=data.draw(st.integers(1, 65535)),
        tls=data.draw(st.booleans()),
        devices=tuple(sorted(devices, key=lambda device: device.client)),
        overrides=tuple(words),
    )
    manifest.save(made)
    assert manifest.load(folder) == made


@given(
    name=NAMES,
    client=st.integers(0, 50),
    students=st.none() | st.lists(st.sampled_from(STUDENTS), min_size=1, unique=True).map(tuple),
    strategies=st.none() | st.lists(st.sampled_from(compose.options("strategy")), min_size=1, unique=True).map(tuple),
    memory=st.none() | st.integers(1, 10**6),
    data=st.none() | st.text("abc ${}'\"#:%\\é", min_size=1).filter(lambda text: "${" not in text),
    port=st.integers(1, 65535),
)
def test_any_kit_is_read_as_it_was_written(tmp_path_factory, name, client, students, strategies, memory, data, port):
    folder = tmp_path_factory.mktemp("kit").resolve()
    made = node(
        folder,
        name=name,
        client=client,
        clients=client + 1,
        students=students,
        strategies=strategies,
        memory_mb=memory,
        data=None if data is None else Path("/data") / data,
        runtime_port=port,
    )
    write(folder, made.describe().data.decode(), kit.FILE)
    assert Kit.load(folder) == made


def test_a_deployment_may_be_moved_with_its_files(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    manifest.save(replace(deployment(old), overrides=(str(old / "base-1.yaml"), "/etc/other.yaml", "seed=2")))
    old.rename(new)
    found = manifest.load(new)
    assert found.overrides == (str(new / "base-1.yaml"), "/etc/other.yaml", "seed=2")
    assert found.public_key("edge-1") == new / "server" / "keys" / "edge-1.pub"


def test_no_deployment_says_how_to_make_one(tmp_path):
    found = mistakes(lambda: manifest.load(tmp_path))
    assert list(found) == [f"{tmp_path} is no deployment: deployment.yaml is missing"]
    assert "fedkd deploy init" in found.popitem()[1][1]


def test_all_mistakes_of_a_deployment_are_told_at_once_with_their_lines(tmp_path):
    write(
        tmp_path,
        f"""\
schema: 1
address: fl.example.org
port: 70000
tls: "yes"
word: []
words: []
devices:
  edge-1: {{client: 0, fingerprint: "{KEY}", student: null, color: red}}
  edge-2: {{client: -1, fingerprint: 7, student: null}}
  edge-3: 4
""",
    )
    found = mistakes(lambda: manifest.load(tmp_path))
    place = tmp_path / manifest.FILE
    assert {what: where for what, (where, _) in found.items()} == {
        "unknown key 'word'": f"{place}:5",
        "port = 70000": f"{place}:3",
        "tls = yes": f"{place}:4",
        "unknown key 'devices.edge-1.color'": f"{place}:8",
        "devices.edge-2.client = -1": f"{place}:9",
        "devices.edge-2.fingerprint = 7": f"{place}:9",
        "devices.edge-3 = 4": f"{place}:10",
    }
    assert "did you mean 'words'?" in found["unknown key 'word'"][1]


def test_what_types_do_not_tell_is_told_too(tmp_path):
    write(
        tmp_path,
        f"""\
schema: 1
address: "https://fl.example.org"
port: 8000
tls: true
words: []
devices:
  Edge_1: {{client: 0, fingerprint: "{KEY}", student: mlp}}
  edge-2: {{client: 2, fingerprint: "{KEY}", student: resnet9}}
  edge-3: {{client: 4, fingerprint: "SHA256:short"}}
""",
    )
    found = mistakes(lambda: manifest.load(tmp_path))
    assert set(found) == {
        'address = "https://fl.example.org"',
        "the clients of devices are 0, 2, 4",
        "device 'Edge_1'",
        'devices.edge-3.fingerprint = "SHA256:short"',
        "devices.edge-2.student = resnet9",
        "devices.edge-3.student = null",
        "Edge_1 and edge-2 have the same key",
    }
    assert "resnet8" in found["devices.edge-2.student = resnet9"][1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("- a", "the file is no mapping of keys"),
        ("a: [", "not YAML"),
        ("schema: 2\naddress: a\nport: 1\ntls: true\nwords: []\ndevices: {}\n", "schema = 2"),
        ("schema: 1\naddress: a\nport: 1\ntls: true\nwords: []\ndevices: {}\n", "the clients of devices are none"),
        ("schema: 1\naddress: a\nport: 1\ntls: true\nwords: []\n", "devices is missing"),
        ("schema: 1\naddress: a\nport: true\ntls: true\nwords: []\ndevices: {}\n", "port = true"),
        ("schema: 1\naddress: a\nport: 1\ntls: true\nwords: [3]\ndevices: {}\n", "words.0 = 3"),
    ],
)
def test_a_broken_page_is_an_error_with_its_place(tmp_path, text, what):
    with pytest.raises(ConfigError, match=what) as caught:
        manifest.load(write(tmp_path, text))
    assert str(tmp_path) in caught.value.message()


def test_a_kit_tells_what_is_wrong_with_it(tmp_path):
    text = node(tmp_path, name="edge-1").describe().data.decode()
    for old, new in [
        ("name: edge-1", "name: -edge"),
        ("client: 0", "client: 2"),
        ("fl.example.org:8000", "fl.example.org"),
        ("students: null", "students: [mlp, mpl]"),
        ("strategies: null", "strategies: []"),
        ("student: null", "student: lenet5"),
        ("tls: true", "tls: false"),
        ("state: state", 'state: ""'),
    ]:
        assert old in text
        text = text.replace(old, new, 1)
    found = mistakes(lambda: Kit.load(write(tmp_path, text, kit.FILE)))
    assert set(found) == {
        "name = -edge" if "name = -edge" in found else 'name = "-edge"',
        "client = 2",
        'superlink = "fl.example.org"' if 'superlink = "fl.example.org"' in found else "superlink = fl.example.org",
        "students names mpl",
        "strategies = []",
        "student = lenet5",
        "ca = ca.crt",
        'state = ""',
    }
    assert "mlp" in found["students names mpl"][1]


def test_an_unknown_key_of_a_kit_is_an_error(tmp_path):
    text = node(tmp_path).describe().data.decode() + "memory: 3\n"
    found = mistakes(lambda: Kit.load(write(tmp_path, text, kit.FILE)))
    assert "did you mean 'memory_mb'?" in found["unknown key 'memory'"][1]


def test_the_files_of_a_kit_are_looked_at(tmp_path):
    made = node(tmp_path)
    assert [problem.what for problem in made.problems()] == [
        "the device's key is missing",
        "the server's CA is missing",
    ]
    (tmp_path / "node_key").touch(0o640)
    (tmp_path / "ca.crt").touch()
    assert [problem.what for problem in made.problems()] == ["others can read the device's key"]
    (tmp_path / "node_key").chmod(0o600)
    assert made.problems() == []


def test_recounting_changes_nothing_else(tmp_path):
    text = node(tmp_path).describe().data.decode().replace("strategies: null", "strategies: [fedgen]  # clients: 9")
    counted = kit.recount(text, 12)
    assert Kit.load(write(tmp_path, counted, kit.FILE)) == node(tmp_path, clients=12, strategies=("fedgen",))
    assert counted.replace("clients: 12", "clients: 2", 1) == text


def test_where_a_server_listens():
    made = deployment(Path("/x"))
    assert [replace(made, address=host).listen for host in ("localhost", "127.0.0.1", "::1")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
    ]
    assert replace(made, address="fl.example.org").listen == "0.0.0.0"
    assert replace(made, address="2001:db8::1").listen == "::"
    assert replace(made, address="2001:db8::1").superlink == "[2001:db8::1]:8000"


def test_the_overrides_of_a_run_name_its_devices(tmp_path):
    assert deployment(tmp_path).run_overrides() == ["strategy=fedgen", "rounds=3", "clients=2"]
    mixed = deployment(tmp_path, students=("mlp", "lenet5"))
    assert mixed.student_overrides() == ["students=[mlp, lenet5]"]
    assert mixed.run_overrides() == ["strategy=fedgen", "rounds=3", "clients=2", "students=[mlp, lenet5]"]
    assert compose.draft(mixed.run_overrides()).values["students"]["mix"] == ["mlp", "lenet5"]


def test_a_device_is_found_by_its_name(tmp_path):
    made = deployment(tmp_path)
    assert made.find("edge-2").client == 1
    with pytest.raises(ConfigError, match="did you mean 'edge-1'"):
        made.find("edge1")


def test_reading_imports_neither_torch_nor_flower(tmp_path):
    manifest.save(deployment(tmp_path))
    code = (
        "import sys; from pathlib import Path; from simulations.deploy import init, manifest;"
        f"manifest.load(Path({str(tmp_path)!r})); print([m for m in ('torch', 'flwr', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
