"""Making, extending and renewing a deployment: whole or not at all, secrets kept, everything in it usable."""

import json
import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from fedkd.configuration import compose
from fedkd.errors import ConfigError, DeployError, FolderError
from simulations.deploy import certificates, files, init, manifest
from simulations.run.options import Deploy, Options

ROOT = Path(__file__).parents[3]
SECRETS = {"ca.key", "server.key", "node_key"}


def make(folder: Path, devices: str = "edge-1,edge-2,edge-3", **more) -> manifest.Deployment:
    words = (str(folder), *more.pop("words", ()))
    return init.make(
        Deploy(action="init", arguments=words, **{"address": "fl.example.org", "devices": devices, **more})
    )


def mistakes(call) -> dict[str, str]:
    """What is wrong, and how to mend it."""
    with pytest.raises(ConfigError) as caught:
        call()
    return {mistake.what: mistake.mend for mistake in caught.value.mistakes}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_deployment_has_all_that_its_machines_need(tmp_path):
    made = make(tmp_path / "edge", "edge-1:mlp,edge-2:lenet5", words=["strategy=fedmd", "proxy=held-out"])
    assert manifest.load(tmp_path / "edge") == made
    assert made.student_overrides() == ["students=[mlp, lenet5]"]
    now = datetime.now(UTC)
    assert certificates.inspect(made.server_certificate, made.ca, "fl.example.org", now, made.server_key) == []
    for number, device in enumerate(made.devices):
        kit = made.load_kit(device.name)
        assert (kit.client, kit.clients, kit.student, kit.runtime_port) == (number, 2, device.student, 9094 + number)
        assert kit.superlink == "fl.example.org:8000"
        assert kit.ca.read_bytes() == made.ca.read_bytes()
        assert kit.problems() == []
        assert certificates.fingerprint(made.public_key(device.name).read_bytes()) == device.fingerprint


def test_rights(tmp_path):
    before = os.umask(0)
    try:
        make(tmp_path / "edge")
        init.extend(tmp_path / "edge", "1")
    finally:
        os.umask(before)
    for path in [tmp_path / "edge", *(tmp_path / "edge").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = 0o700 if path.is_dir() else 0o600 if path.name in SECRETS else 0o755 if path.suffix == ".sh" else 0o644
        assert oct(mode) == oct(wanted), path


def test_no_folder_is_open_and_no_secret_is_in_the_open_ones(tmp_path):
    made = make(tmp_path / "edge")
    secret = {path for path in made.folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()}
    assert {path.name for path in secret} == SECRETS
    assert len(secret) == 2 + 3


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("is_own_repository", [True, False])
def test_git_takes_nothing_secret(tmp_path, is_own_repository):
    made = make(tmp_path / "edge", "2", words=[str(written(tmp_path, "rounds: 3\n"))])
    kit = made.kit("edge-1")
    extras = [
        "runs/a/metrics.jsonl",
        ".flwr/state.db",
        ".flwr/config.toml",
        "logs/server.log",
        "ca/backup.key",
        "x.pem",
    ]
    extras += ["devices/edge-1/state/memory.bin", "devices/edge-1/data/cat/1.png", "devices/edge-1/node_key.bak"]
    extras += ["server/keys/old.key", "server/server.key.bak", "wheel/fedkd-0.1.0.whl", "public/public.npz"]
    for name in extras:
        (made.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (made.folder / name).write_text("secret")
    top = made.folder if is_own_repository else tmp_path
    for place in (top, shutil.copytree(kit, tmp_path.parent / f"{tmp_path.name}-copied" / "kit")):
        subprocess.run(["git", "init", "-q", place], check=True)
        subprocess.run(["git", "-C", place, "add", "-A"], check=True)
    listed = subprocess.run(["git", "-C", top, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    ours = {name.removeprefix("edge/") for name in listed if is_own_repository or name.startswith("edge/")}
    of_kit = {".gitignore", "ca.crt", "node.yaml", "start.sh"}
    kits = {f"devices/edge-{i}/{n}" for i in (1, 2) for n in {*of_kit, f"fedkd-edge-{i}.service"}}
    server = {"server.crt", "start.sh", "fedkd-superlink.service", "keys/edge-1.pub", "keys/edge-2.pub"}
    top_level = {".gitignore", ".dockerignore", "README.md", "Containerfile", "compose.yaml", "deployment.yaml"}
    assert ours == {*top_level, "base-1.yaml", "ca/ca.crt", *kits, *(f"server/{name}" for name in server)}
    copied = tmp_path.parent / f"{tmp_path.name}-copied" / "kit"
    kept = subprocess.run(["git", "-C", copied, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    assert set(kept) == {*of_kit, "fedkd-edge-1.service"}


def written(folder: Path, text: str) -> Path:
    place = folder / "mine.yaml"
    place.write_text(text, encoding="utf-8")
    return place


def test_a_deployment_is_never_overwritten(tmp_path):
    make(tmp_path / "edge")
    before = tree(tmp_path)
    with pytest.raises(FolderError, match="never overwritten") as caught:
        make(tmp_path / "edge", "edge-9")
    assert "fedkd deploy add" in caught.value.mend
    (tmp_path / "edge" / "deployment.yaml").unlink()
    with pytest.raises(FolderError, match="not empty"):
        make(tmp_path / "edge", "edge-9")
    del before["edge/deployment.yaml"]
    assert tree(tmp_path) == before


def test_an_empty_folder_becomes_one_and_a_file_or_the_present_folder_does_not(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="exists and is not empty"):
        make(tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FolderError, match="the folder you are in"):
        make(Path())
    make(Path("below"))
    assert manifest.load(Path("below")).folder == tmp_path / "here" / "below"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    for at in range(0, 30, 7):
        with monkeypatch.context() as patch:
            fail_at(patch, at)
            with pytest.raises(FolderError, match="No space left"):
                make(tmp_path / "edge")
        assert list(tmp_path.iterdir()) == []
    make(tmp_path / "edge")


def test_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch):
    fail_at(monkeypatch, 9, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "edge")
    assert list(tmp_path.iterdir()) == []


def fail_at(monkeypatch, at: int, error: BaseException | None = None) -> None:
    """From the `at`-th file on the disk is full, but for what undoes things."""
    real, calls = os.fsync, iter(range(10_000))

    def sync(handle):
        if next(calls) == at:
            raise error or OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", sync)


def test_files_of_words_are_copied(tmp_path, monkeypatch):
    written(tmp_path, "rounds: 7\n")
    monkeypatch.chdir(tmp_path)
    made = make(Path("edge"), words=["mine.yaml", "seed=4"])
    (tmp_path / "mine.yaml").unlink()
    assert made.overrides == (str(tmp_path / "edge" / "base-1.yaml"), "seed=4")
    (tmp_path / "edge").rename(tmp_path / "moved")
    assert compose.draft(manifest.load(Path("moved")).run_overrides()).values["rounds"] == 7


def test_adding_renumbers_nobody_and_keeps_what_was_edited(tmp_path):
    before = make(tmp_path / "edge", "2", memory_mb=300)
    node = before.kit("edge-1") / "node.yaml"
    node.write_text(node.read_text().replace("strategies: null", "strategies: [fedgen]"))
    keys = {device.name: (before.kit(device.name) / "node_key").read_bytes() for device in before.devices}
    after, edited = init.extend(tmp_path / "edge", "camera")
    assert edited == []
    assert manifest.load(tmp_path / "edge") == after
    assert after.devices[:2] == before.devices
    assert (after.devices[2].name, after.devices[2].client) == ("camera", 2)
    assert [after.load_kit(device.name).clients for device in after.devices] == [3, 3, 3]
    assert after.load_kit("edge-1").strategies == ("fedgen",)
    assert keys == {name: (after.kit(name) / "node_key").read_bytes() for name in keys}
    assert "device-camera" in yaml.safe_load((after.folder / "compose.yaml").read_text())["services"]
    assert "| camera | 2 |" in (after.folder / "README.md").read_text()
    fresh = make(tmp_path / "fresh", "edge-1,edge-2,camera", memory_mb=300)
    assert set(tree(fresh.folder)) == set(tree(after.folder))


def test_adding_works_when_kits_have_gone_and_files_were_edited(tmp_path):
    made = make(tmp_path / "edge", "2")
    shutil.rmtree(made.kit("edge-1"))
    (made.folder / "README.md").write_text("my own notes")
    after, edited = init.extend(made.folder, "1")
    assert edited == ["README.md"]
    assert (made.folder / "README.md").read_text() == "my own notes"
    assert [device.name for device in after.devices] == ["edge-1", "edge-2", "edge-3"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_an_add_that_fails_leaves_all_as_it_was(tmp_path, monkeypatch, error):
    make(tmp_path / "edge", "2")
    before = tree(tmp_path)
    for at in range(12):  # files: 6 of the kit, its public key, 2 that are shared, 2 older kits, the description
        with monkeypatch.context() as patch:
            fail_at(patch, at, error)
            with pytest.raises(FolderError if error is None else KeyboardInterrupt):
                init.extend(tmp_path / "edge", "edge-3")
        assert tree(tmp_path) == before
    init.extend(tmp_path / "edge", "edge-3")


def test_adding_is_refused(tmp_path):
    make(tmp_path / "edge", "a:mlp,b:mlp", words=["clients_per_round=2"])
    before = tree(tmp_path)
    assert set(mistakes(lambda: init.extend(tmp_path / "edge", "a:mlp"))) == {"device 'a' is listed twice"}
    assert set(mistakes(lambda: init.extend(tmp_path / "edge", "c"))) == {"device 'c' has no student"}
    assert "is no deployment" in str(mistakes(lambda: init.extend(tmp_path / "none", "c")))
    assert "is no deployment" in str(mistakes(lambda: init.extend(tmp_path, "c")))
    assert tree(tmp_path) == before
    (tmp_path / "edge" / "devices" / "c").mkdir()
    with pytest.raises(FolderError, match="there is one already"):
        init.extend(tmp_path / "edge", "c:mlp")


def test_only_one_command_changes_a_deployment(tmp_path):
    make(tmp_path / "edge")
    with init._alone(tmp_path / "edge"), pytest.raises(FolderError, match="another command"):
        init.extend(tmp_path / "edge", "1")
    init.extend(tmp_path / "edge", "1")


def test_renewing_keeps_the_key_and_all_kits(tmp_path):
    made = make(tmp_path / "edge")
    before = tree(made.folder)
    later = datetime.now(UTC) + timedelta(days=400)
    assert [problem.what for problem in certificates.inspect(made.server_certificate, made.ca, made.address, later)]
    init.certify(made.folder, later)
    assert certificates.inspect(made.server_certificate, made.ca, made.address, later, made.server_key) == []
    after = tree(made.folder)
    assert {name for name in after if after[name] != before.get(name)} == {"server/server.crt"}


def test_renewing_with_a_lost_key_makes_another(tmp_path):
    made = make(tmp_path / "edge")
    made.server_key.unlink()
    init.certify(made.folder)
    now = datetime.now(UTC)
    assert certificates.inspect(made.server_certificate, made.ca, made.address, now, made.server_key) == []
    assert stat.S_IMODE(made.server_key.stat().st_mode) == 0o600


def test_renewing_is_refused(tmp_path):
    made = make(tmp_path / "edge")
    before = tree(made.folder)
    with pytest.raises(DeployError, match="the CA expired"):
        init.certify(made.folder, datetime.now(UTC) + timedelta(days=4000))
    key = made.ca_key.read_bytes()
    made.ca_key.write_bytes(certificates.authority(datetime.now(UTC)).key_file.data)
    with pytest.raises(DeployError, match="not that of its certificate"):
        init.certify(made.folder)
    made.ca_key.unlink()
    with pytest.raises(DeployError, match="the key of the CA is missing"):
        init.certify(made.folder)
    files.create(made.ca_key, files.Content(key, files.SECRET))
    assert tree(made.folder) == before
    plain = make(tmp_path / "plain", insecure=True)
    with pytest.raises(ConfigError, match="has no certificates"):
        init.certify(plain.folder)


def test_without_tls_there_are_no_certificates(tmp_path):
    made = make(tmp_path / "edge", insecure=True, address="localhost")
    assert not made.tls
    assert not made.ca.exists()
    assert made.load_kit("edge-1").ca is None
    assert made.load_kit("edge-1").problems() == []
    assert "## No TLS" in (made.folder / "README.md").read_text()
    after, _ = init.extend(made.folder, "1")
    assert after.load_kit("edge-4").ca is None


def test_screens(tmp_path, capsys):
    asked = Deploy(action="init", arguments=(str(tmp_path / "my edge"),), address="localhost", devices="2")
    assert init.init(asked) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"made   {tmp_path / 'my edge'}   2 devices, server localhost:8000, TLS\n")
    assert f"fedkd deploy server '{tmp_path / 'my edge'}'" in out
    assert init.add(tmp_path / "my edge", "1", Options(json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["added"] == ["edge-3"]
    assert [device["client"] for device in found["devices"]] == [0, 1, 2]
    assert init.renew(tmp_path / "my edge", Options(quiet=True)) == 0
    assert capsys.readouterr().out.count("\n") == 1
