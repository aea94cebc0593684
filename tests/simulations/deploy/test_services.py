"""What starts a server and its devices, judged by shells, systemd and a YAML reader; and the guide that names it."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from simulations.deploy import init, manifest, services
from simulations.run.options import Deploy

ROOT = Path(__file__).parents[3]
WEIRD = "a b'c\"d$(touch x)`e`;f%n\\g\né&*"


def make(folder: Path, devices: str, **more) -> manifest.Deployment:
    return init.make(Deploy(action="init", arguments=(str(folder),), address="fl.example.org", devices=devices, **more))


@pytest.mark.parametrize("name", ["edge", WEIRD, "-x", "ends\n", "~"])
def test_start_scripts_work_in_any_folder(tmp_path, name):
    made = make(tmp_path / name, "2")
    programs = tmp_path / "programs"
    programs.mkdir()
    shown = programs / "fedkd"
    shown.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    shown.chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}

    def play(cwd: Path, *command: str) -> list[str]:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
        return done.stdout.split("\0")[:-1]

    for cwd, prefix in [(made.folder, ""), (tmp_path, f"{made.folder}/"), (tmp_path, f"./{name}/")]:
        words = play(cwd, "sh", "--", f"{prefix}devices/edge-2/start.sh", "--data", "my data")
        assert words[:2] == ["deploy", "client"]
        assert words[3:] == ["--data", "my data"]
        assert (cwd / words[2]).resolve() == made.kit("edge-2")
        assert not words[2].startswith("-")
        words = play(cwd, "sh", "--", f"{prefix}server/start.sh")
        assert words[:2] == ["deploy", "server"]
        assert (cwd / words[2]).resolve() == made.folder
    words = play(made.folder / "server", "sh", "start.sh")
    assert (made.folder / "server" / words[2]).resolve() == made.folder
    assert not (tmp_path / "x").exists()


def test_scripts_are_right_for_shells(tmp_path):
    made = make(tmp_path / "edge", "1")
    for script in made.folder.rglob("*.sh"):
        for shell in filter(shutil.which, ("bash", "dash", "sh")):
            subprocess.run([shell, "-n", script], check=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("name", ["edge", WEIRD])
def test_units_are_right_for_systemd(tmp_path, name):
    made = make(tmp_path / name, "1", memory_mb=500)
    units = sorted(made.folder.rglob("*.service"))
    assert len(units) == 2
    for unit in units:
        copy = tmp_path / unit.name  # a path that systemd itself takes
        shutil.copy(unit, copy)
        done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if copy.name in line]
        assert said == [], done.stderr
        text = unit.read_text()
        assert "\nRestartSec=75\n" in text
        assert "\nNoNewPrivileges=yes\n" in text
        assert "\nProtectSystem=strict\n" in text
    assert f"\nMemoryMax={500 + services.OVERHEAD_MB}M\n" in units[0].read_text()


def test_paths_in_units_mean_themselves(tmp_path):
    made = make(tmp_path / WEIRD, "1")
    lines = (made.folder / "server" / "fedkd-superlink.service").read_text().splitlines()
    place = f'"{tmp_path}/a b\'c\\"d$(touch x)`e`;f%%n\\\\g\\x0aé&*"'
    assert f"ReadWritePaths={place}" in lines
    assert f"ExecStart=/usr/bin/env fedkd deploy server {place.replace('$', '$$')}" in lines


def test_containers(tmp_path):
    made = make(tmp_path / "edge", "1,cam-2", memory_mb=500)
    found = yaml.safe_load((made.folder / "compose.yaml").read_text())["services"]
    assert set(found) == {"superlink", "device-1", "device-cam-2"}
    for service in found.values():
        assert {"mem_limit", "cpus", "pids_limit"} <= set(service)
        assert service["cap_drop"] == ["ALL"]
    camera = found["device-cam-2"]
    assert camera["volumes"] == ["./devices/cam-2:/kit", "${FEDKD_CAM_2_DATA:-./data/cam-2}:/data:ro"]
    assert camera["mem_limit"] == f"${{FEDKD_CAM_2_MEMORY:-{500 + services.OVERHEAD_MB}m}}"
    targets = {service["build"]["target"] for service in found.values()}
    stages = [line.split()[-1] for line in (made.folder / "Containerfile").read_text().splitlines() if " AS " in line]
    assert targets < set(stages)


def test_containers_of_devices_have_the_packages_of_the_group_edge():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert list(services.EDGE) == project["dependency-groups"]["edge"]


def test_the_guide_names_real_paths_and_commands_in_their_order(tmp_path):
    made = make(tmp_path / "edge", "cam,two")
    text = (made.folder / "README.md").read_text()
    block = text.split("```")[1].strip().splitlines()
    words = [line.split("#")[0].split() for line in block]
    assert [line[2] if line[0] == "fedkd" else line[0] for line in words] == [
        "scp",
        "server",
        "client",
        "run",
        "status",
        "stop",
    ]
    assert (made.folder / words[0][2]).is_dir()
    assert (made.folder / "server/start.sh").exists()
    for device in made.devices:
        assert f"| {device.name} | {device.client} | as the run | {device.fingerprint} |" in text
