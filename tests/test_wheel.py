"""The wheel, used outside the tree: it has the packages and conf/, and an edge client needs none of the heavy ones."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {  # what devices do without: distribution -> module
    "ray": "ray",
    "tensorboard": "tensorboard",
    "matplotlib": "matplotlib",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "vl-convert-python": "vl_convert",
    "jinja2": "jinja2",
    "psutil": "psutil",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    copied = ["pyproject.toml", "README.md", "LICENSE", "fedkd", "strategies", "clients", "simulations", "conf"]
    source.mkdir()
    for name in copied:  # a copy: building leaves a build folder behind
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(place), str(source)], check=True, timeout=240)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def run(installed: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *words], cwd=installed.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_has_every_setting_and_no_tests(installed: Path) -> None:
    settings = {path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(installed) for path in (installed / "conf").rglob("*.yaml")} == settings
    assert not (installed / "tests").exists()


def test_a_client_needs_none_of_the_heavy_packages_and_a_run_works_outside_the_tree(installed: Path) -> None:
    """In one process, which imports torch once."""
    code = f"""
import sys
heavy = {[*HEAVY.values()]!r}
sys.modules |= dict.fromkeys(heavy)  # importing one now raises
import simulations.flower_app, simulations.run.runs, simulations.run.driver, simulations.engines.choose
for name in heavy: del sys.modules[name]
from simulations.cli import main as cli
sys.exit(cli.main(["run", "rounds=1", "train.steps=1", "engine=inline", "--json"]))
"""
    assert '"status": "done"' in run(installed, "-c", code)


def test_the_edge_group_is_the_dependencies_less_the_heavy_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    everything = {name.replace("[simulation]", "") for name in project["project"]["dependencies"]}
    heavy = {name for name in everything if name.startswith(tuple(HEAVY))}
    assert len(heavy) == len(HEAVY)
    assert set(project["dependency-groups"]["edge"]) == everything - heavy
