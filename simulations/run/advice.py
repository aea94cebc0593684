"""Advice after a failed run, by cause. A resume does not help if the same settings fail again."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.config import RunConfig
from fedkd.engine import Failure
from simulations.system import machine

_RATE = re.compile(r"(\w+_)?lr")  # keys of a strategy that are a learning rate
_SMALLER = 10  # the proposed rate is the diverged one divided by this
_NOT_FINITE = frozenset({"non_finite", "unsettled"})
_SPOILED = ". If one client's replies spoiled the state: fedkd resume {path} --without CLIENT --from ROUND"
_CLIP = 1.0  # the norm that is proposed


@dataclass(frozen=True)
class Advice:
    """What the user can do."""

    text: str
    replays: bool  # whether the same configuration fails the same way again, on any machine


def after(failures: Sequence[Failure], config: RunConfig, folder: Path, *, on_devices: bool) -> Advice:
    """Advice after failures ended a run in `folder`.

    A simulation is deterministic: after a resume the border refuses the same replies again. Devices can be mended.
    """
    replays = bool(failures) and all(failure.is_rejected for failure in failures) and not on_devices
    path = shlex.quote(str(folder))
    if failures and all(failure.cause in _NOT_FINITE for failure in failures):
        text = _diverged(config, path, replays=replays, on_devices=on_devices)
        is_late = failures[0].round > 1 and failures[0].task == "train"  # an earlier round may have spoiled the state
        return Advice(text + (_SPOILED.format(path=path) if is_late and not on_devices else ""), replays)
    if replays:
        why = "The same replies would be refused again, so a resume does not help. See clients/*/errors.log"
        return Advice(f"{why}, then start a run with other settings: fedkd run {path}/config.yaml KEY=VALUE", replays)
    resume = f"fedkd deploy run DIR {shlex.quote(folder.name)} --resume" if on_devices else f"fedkd resume {path}"
    if any(machine.is_shortage(failure.what) for failure in failures):
        limits = "" if on_devices else f" ({machine.limits()})"
        return Advice(f"There was too little memory{limits}: {machine.MEND}, then: {resume}", replays)
    return Advice(f"See clients/*/errors.log, then: {resume}", replays)


def _diverged(config: RunConfig, path: str, *, replays: bool, on_devices: bool) -> str:
    train = config.train
    rates = {f"strategy.{key}": value for key, value in config.strategy.items() if _is_rate(key, value)}
    own = "".join(f", or {key} (= {value:g})" for key, value in rates.items())
    clip = "bound the gradient with train.clip" if train.clip is None else f"lower train.clip (= {train.clip:g})"
    overrides = f"train.lr={train.lr / _SMALLER:g}" + ("" if train.clip is not None else f" train.clip={_CLIP:g}")
    why = "The same settings diverge again, so a resume does not help. " if replays else ""
    run = "fedkd deploy run DIR" if on_devices else f"fedkd run {path}/config.yaml"
    return f"{why}Lower train.lr (= {train.lr:g}){own}, or {clip}, in a new run: {run} {overrides}"


def _is_rate(key: str, value: Any) -> bool:
    return bool(_RATE.fullmatch(key)) and isinstance(value, int | float) and not isinstance(value, bool)
