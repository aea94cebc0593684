"""fedkd as a bundle that Flower sends to its nodes: our packages, and a pyproject.toml for the bundle.

Works from a checkout and from an installed wheel, which has no pyproject.toml.
"""

import shutil
from pathlib import Path

import fedkd

PACKAGES = ("fedkd", "strategies", "clients", "simulations", "conf")
_ROOT = Path(__file__).parents[2]  # the folder of our packages
_SUFFIXES = {".py", ".yaml"}
_LEFT_OUT = ("analysis", "bench", "cli", "compare", "export", "report")  # of simulations: nodes do not need them

KEYS = {  # of the app's run config: what `flwr run -c` may set
    "overrides": '""',
    "runs": '""',
    "name": '""',
    "devices": "false",
    "config": '""',
    "public": '""',
    "names": '"{}"',
    "resume": "false",
    "plaintext": "false",
    "command": '"[]"',
}

_PYPROJECT = """[project]
name = "fedkd"
version = "{version}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedkd"
fab-include = ["fedkd/**/*.py", "strategies/**/*.py", "clients/**/*.py", "simulations/**/*.py", "conf/**/*.yaml"]

[tool.flwr.app.components]
serverapp = "simulations.flower_app:server_app"
clientapp = "simulations.deploy.node:client_app"

[tool.flwr.app.config]
{keys}
"""


def stage(folder: Path) -> Path:
    """Copy the app into an empty folder, for `flwr run`; returns the folder."""
    for package in PACKAGES:
        for path in sorted((_ROOT / package).rglob("*")):
            relative = path.relative_to(_ROOT)
            if path.suffix in _SUFFIXES and "__pycache__" not in relative.parts and not _is_left_out(relative):
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    keys = "\n".join(f"{key} = {value}" for key, value in KEYS.items())
    (folder / "pyproject.toml").write_text(_PYPROJECT.format(version=fedkd.__version__, keys=keys), encoding="utf-8")
    return folder


def _is_left_out(relative: Path) -> bool:
    return relative.parts[0] == "simulations" and len(relative.parts) > 2 and relative.parts[1] in _LEFT_OUT
