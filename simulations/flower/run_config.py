"""Reads what `flwr run -c` may set: the configuration, the run's name, and the folder of runs."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd import strict_yaml
from fedkd.configuration import compose
from fedkd.configuration.resolved import Resolved
from fedkd.errors import ConfigError


def resolve(overrides: str) -> Resolved:
    """The configuration that the app's `overrides` describe, written as for `fedkd run`. Raises ConfigError."""
    if len(overrides) > strict_yaml.LONGEST:
        raise ConfigError(f"overrides have {len(overrides)} characters", where="run config", mend="send a whole config")
    try:
        arguments = shlex.split(overrides)
    except ValueError as error:
        what = f"overrides = {overrides!r}: {error}"
        raise ConfigError(what, where="run config", mend="close the quotation") from error
    return compose.resolve(arguments)


def text(run_config: Mapping[str, Any]) -> str:
    """The whole configuration of a run as YAML: the app's `config`, or else that of its `overrides`."""
    config = str(run_config.get("config", ""))
    return config or resolve(str(run_config.get("overrides", ""))).to_yaml()


def name(run_config: Mapping[str, Any], run_id: int) -> str:
    """The run's name, under which devices keep their memory of it."""
    return str(run_config.get("name", "")) or f"flower-{run_id}"


def folder(given: str) -> Path:
    """The folder of runs. It must be absolute, because Flower starts apps in a folder of its own choice."""
    path = Path(given).expanduser() if given else Path.home() / "fedkd-runs"
    if not path.is_absolute():
        raise ConfigError(f"runs = '{given}' is not absolute", where="run config", mend='write runs="/path/to/runs"')
    return path
