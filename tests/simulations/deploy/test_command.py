"""`fedkd deploy` on the command line: what is missing or wrong is said at once, with the exit code of its kind."""

import json
from pathlib import Path

import pytest

from simulations.cli import main
from simulations.deploy import app, manifest, processes

INIT = ("--address", "127.0.0.1", "--devices", "edge-1,edge-2")


def deploy(*args: str | Path) -> int:
    return main.main(["deploy", *map(str, args)])


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ((), "the following arguments are required"),
        (("strat", "fl"), "there is no action 'strat'"),
        (("run",), "deploy run needs a folder"),
        (("server", "rounds=3"), "deploy server needs a folder"),
        (("init", "fl"), "deploy init needs --address and --devices"),
        (("add", "fl"), "deploy add needs --devices"),
        (("run", "nothing-here"), "nothing-here"),
        (("client", "nothing-here"), "nothing-here"),
    ],
)
def test_what_is_missing_is_said(
    args: tuple[str, ...],
    what: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert deploy(*args) == 2
    assert what in capsys.readouterr().err


@pytest.fixture
def fl(tmp_path: Path) -> Path:
    folder = tmp_path / "fl"
    assert deploy("init", folder, *INIT, "--port", str(processes.free_port()), "rounds=2") == 0
    return folder


def test_a_client_must_be_named(fl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy("client", fl) == 2
    assert "the devices are: edge-1, edge-2" in capsys.readouterr().err
    assert deploy("client", fl, "--name", "edge-9") == 2
    assert "there is no device 'edge-9'" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["run", "status"])
def test_without_a_superlink_it_ends_at_once(fl: Path, capsys: pytest.CaptureFixture[str], action: str) -> None:
    assert deploy(action, fl) == 7
    assert "no SuperLink answers" in capsys.readouterr().err


def test_a_client_without_data(fl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy("client", fl, "--name", "edge-1") == 3
    assert "edge-1 has no data" in capsys.readouterr().err
    assert deploy("client", fl, "--name", "edge-1", "--data", tmp_path / "none") == 3
    assert "there is no such file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert deploy("client", fl, "--name", "edge-1", "--data", tmp_path / "empty") == 3
    assert "the folder is empty" in capsys.readouterr().err


def test_a_key_that_others_can_read(fl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fl / "devices/edge-1/node_key").chmod(0o644)
    assert deploy("client", fl / "devices/edge-1", "--data", fl) == 7
    assert "others can read the device's key" in capsys.readouterr().err


def test_the_number_of_clients_is_the_number_of_devices(fl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy("run", fl, "clients=5") == 2
    assert "the deployment has 2 devices" in capsys.readouterr().err


def test_stopping_what_does_not_run(fl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy("stop", fl) == 0
    assert "no SuperLink of this deployment runs here" in capsys.readouterr().out
    assert deploy("stop", fl / "devices/edge-1") == 0


def test_shards_and_the_public_images_alone(fl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy("shards", fl, "--json", "proxy=held-out", "proxy.size=20") == 0
    rows = json.loads(capsys.readouterr().out)["shards"]
    assert [row["client"] for row in rows] == [0, 1]
    data = fl / "devices/edge-1/data/data.npz"
    before = data.read_bytes()
    (fl / "public/public.npz").unlink()
    assert deploy("shards", fl, "--public-only", "--quiet", "seed=9") == 0
    assert data.read_bytes() == before
    assert (fl / "public/public.npz").exists()


def test_the_bundle_declares_what_the_checkout_declares(tmp_path: Path) -> None:
    import tomllib

    place = app.stage(tmp_path / "app")
    bundle = tomllib.loads((place / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    ours = tomllib.loads((Path(app.__file__).parents[2] / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert bundle == ours
    assert (place / "conf/strategy/fedgen.yaml").exists()
    assert (place / "simulations/deploy/node.py").exists()
    assert not list(place.rglob("__pycache__"))
    assert manifest.FILE not in [path.name for path in place.iterdir()]
