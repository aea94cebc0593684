"""Parses and checks the request of `fedkd deploy init` and `add`: all mistakes at once, before any change."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedkd import errors
from fedkd.configuration import compose
from fedkd.errors import ConfigError, Mistake
from simulations.deploy import files, names, plan
from simulations.deploy.plan import Device
from simulations.run.options import COMMAND_LINE, Deploy


@dataclass(frozen=True)
class Words:
    """The overrides of a deployment, and its own copies of the files they name."""

    words: tuple[str, ...]
    copies: files.Tree


def check(asked: Deploy) -> tuple[list[Device], Words]:
    """The devices, without keys yet, and the overrides. Raises ConfigError with all mistakes."""
    mistakes = []
    if mend := names.address(asked.address):
        mistakes.append(Mistake(f"--address {asked.address}", COMMAND_LINE, mend))
    if mend := names.port(asked.port):
        mistakes.append(Mistake(f"--port {asked.port}", COMMAND_LINE, mend))
    if asked.memory_mb is not None and asked.memory_mb < 1:
        mistakes.append(Mistake(f"--memory-mb {asked.memory_mb}", COMMAND_LINE, "must be at least 1"))
    devices, more = parse(asked.devices)
    mistakes += more
    if not more:
        mistakes += check_words(asked.rest, devices)
    errors.refuse(mistakes)
    return devices, _own(asked.rest, asked.folder)


def parse(text: str, known: Sequence[Device] = ()) -> tuple[list[Device], list[Mistake]]:
    """The devices in `--devices`, numbered after the known ones; and the mistakes."""
    items = [item.strip() for item in text.split(",")]
    if text.strip().isascii() and text.strip().isdigit():
        count = int(text.strip()[:6])
        taken = {device.name for device in known}
        free = (name for number in itertools.count(1) if (name := f"edge-{number}") not in taken)
        items = list(itertools.islice(free, min(count, names.MOST + 1)))
    devices = []
    for client, item in enumerate(items, start=len(known)):
        name, colon, student = (part.strip() for part in item.partition(":"))
        devices.append(Device(name, client, "", student if colon else None))
    return devices, _wrong(devices, text, list(known))


def check_words(words: Sequence[str], devices: Sequence[Device]) -> list[Mistake]:
    """Mistakes of a run configuration for these devices, as far as quick checks find them."""
    deployment = plan.Deployment(Path(), "localhost", 1, True, tuple(devices), tuple(words))
    try:
        draft = compose.draft(words)
        mistakes = _wrong_words(draft.values, draft.sources, devices)
        compose.check(deployment.run_words())
    except ConfigError as error:
        return list(error.mistakes)
    return mistakes


def _wrong(devices: Sequence[Device], text: str, known: list[Device]) -> list[Mistake]:
    where = f"--devices {text}"
    if not devices:
        return [Mistake(where, COMMAND_LINE, "name one at least: edge-1,edge-2, or how many: 2")]
    if len(known) + len(devices) > names.MOST:
        return [Mistake(where, COMMAND_LINE, f"a deployment has at most {names.MOST} devices")]
    mistakes = []
    for device in devices:
        if mend := names.device(device.name):
            mistakes.append(Mistake(f"device '{device.name}'", COMMAND_LINE, mend))
    for name in names.twice([device.name for device in [*known, *devices]]):
        mistakes.append(Mistake(f"device '{name}' is listed twice", COMMAND_LINE, "each needs a name of its own"))
    for device, mend in plan.wrong_students([*known, *devices]):
        what = f"device '{device.name}' has " + (
            f"student '{device.student}'" if device.student is not None else "no student"
        )
        mistakes.append(Mistake(what, COMMAND_LINE if device not in known else "", mend))
    return [replace(mistake, mend=mistake.mend.split("   ")[0]) for mistake in mistakes] if mistakes[1:] else mistakes


def _wrong_words(values: object, sources: object, devices: Sequence[Device]) -> list[Mistake]:
    """Overrides that contradict the list of devices; a preset's number of clients is ignored, a user's is not."""
    assert isinstance(values, dict)
    assert isinstance(sources, dict)
    mistakes = []
    source, clients = sources.get(("clients",), ""), values.get("clients")
    is_said = not source.startswith(("conf/", "preset "))
    if is_said and clients != len(devices):
        mend = f"leave it out: each of the {len(devices)} devices is a client"
        mistakes.append(Mistake(f"clients = {clients}", source, mend))
    students = values.get("students")
    if isinstance(students, dict) and students.get("mix") is not None and any(device.student for device in devices):
        source = sources.get(("students", "mix"), COMMAND_LINE)
        mistakes.append(Mistake("students are given for each device, too", source, "leave one of them out"))
    return mistakes


def _own(words: Sequence[str], folder: Path) -> Words:
    """Overrides that name the deployment's own copies of files."""
    copies: dict[str, files.Content] = {}
    kept = []
    for word in words:
        if plan.is_file(word):
            name = f"base-{len(copies) + 1}.yaml"
            copies[name] = files.Content(files.read(Path(word)))
            word = str(folder.resolve() / name)
        kept.append(word)
    return Words(tuple(kept), copies)
