"""Parses and checks the request of `fedkd deploy init` and `add`: all mistakes at once, before any change."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedkd import errors
from fedkd.configuration import compose, validate
from fedkd.errors import ConfigError, Mistake
from simulations.deploy import files, manifest, names
from simulations.deploy.manifest import DeviceEntry
from simulations.run.options import COMMAND_LINE, Deploy


def check(options: Deploy) -> tuple[list[DeviceEntry], list[str], files.Tree]:
    """The devices, without keys yet; the overrides; and copies of the files that the overrides name.

    Raises ConfigError with all mistakes.
    """
    mistakes = []
    if mend := names.address(options.address):
        mistakes.append(Mistake(f"--address {options.address}", COMMAND_LINE, mend))
    if mend := names.port(options.port):
        mistakes.append(Mistake(f"--port {options.port}", COMMAND_LINE, mend))
    if options.memory_mb is not None and options.memory_mb < 1:
        mistakes.append(Mistake(f"--memory-mb {options.memory_mb}", COMMAND_LINE, "must be at least 1"))
    devices, more = parse(options.devices)
    errors.refuse(mistakes + (more or check_overrides(options.overrides, devices)))
    return devices, *_with_copies(options.overrides, options.folder)


def parse(text: str, known: Sequence[DeviceEntry] = ()) -> tuple[list[DeviceEntry], list[Mistake]]:
    """The devices in `--devices`, numbered after the known ones; and the mistakes."""
    items = [item.strip() for item in text.split(",")]
    if text.strip().isascii() and text.strip().isdigit():
        count = int(text.strip()[:6])
        taken = {device.name for device in known}
        free = (name for number in itertools.count(1) if (name := f"edge-{number}") not in taken)
        items = list(itertools.islice(free, min(count, names.MAX_DEVICES + 1)))
    devices = []
    for client, item in enumerate(items, start=len(known)):
        name, colon, student = (part.strip() for part in item.partition(":"))
        devices.append(DeviceEntry(name, client, "", student if colon else None))
    return devices, _wrong(devices, text, list(known))


def check_overrides(overrides: Sequence[str], devices: Sequence[DeviceEntry]) -> list[Mistake]:
    """Mistakes of a run configuration for these devices, as far as checks without torch find them."""
    deployment = manifest.Deployment(Path(), "localhost", 1, True, tuple(devices), tuple(overrides))
    try:
        draft = compose.draft(overrides)
        mistakes = _contradictions(draft, devices)
        compose.check(deployment.run_overrides())
    except ConfigError as error:
        return list(error.mistakes)
    return mistakes


def _wrong(devices: Sequence[DeviceEntry], text: str, known: list[DeviceEntry]) -> list[Mistake]:
    where = f"--devices {text}"
    if not devices:
        return [Mistake(where, COMMAND_LINE, "name at least one: edge-1,edge-2, or give their number: 2")]
    if len(known) + len(devices) > names.MAX_DEVICES:
        return [Mistake(where, COMMAND_LINE, f"a deployment has at most {names.MAX_DEVICES} devices")]
    mistakes = []
    for device in devices:
        if mend := names.device(device.name):
            mistakes.append(Mistake(f"device '{device.name}'", COMMAND_LINE, mend))
    for name in names.duplicates([device.name for device in [*known, *devices]]):
        mistakes.append(Mistake(f"device '{name}' is listed twice", COMMAND_LINE, "each needs a name of its own"))
    for device, mend in manifest.wrong_students([*known, *devices]):
        student = "no student" if device.student is None else f"student '{device.student}'"
        where = "" if device in known else COMMAND_LINE
        mistakes.append(Mistake(f"device '{device.name}' has {student}", where, mend))
    return [replace(mistake, mend=mistake.mend.split("   ")[0]) for mistake in mistakes] if mistakes[1:] else mistakes


def _contradictions(draft: validate.Draft, devices: Sequence[DeviceEntry]) -> list[Mistake]:
    """Overrides that contradict the list of devices; a preset's number of clients is ignored, a user's is not."""
    mistakes = []
    source, clients = draft.sources.get(("clients",), ""), draft.values.get("clients")
    is_users = not source.startswith(("conf/", "preset "))
    if is_users and clients != len(devices):
        mend = f"leave it out: each of the {len(devices)} devices is a client"
        mistakes.append(Mistake(f"clients = {clients}", source, mend))
    students = draft.values.get("students")
    if isinstance(students, dict) and students.get("mix") is not None and any(device.student for device in devices):
        source = draft.sources.get(("students", "mix"), COMMAND_LINE)
        mistakes.append(Mistake("students are also given per device", source, "leave one of them out"))
    return mistakes


def _with_copies(overrides: Sequence[str], folder: Path) -> tuple[list[str], files.Tree]:
    """The overrides, naming the deployment's own copies of files; and these copies."""
    copies: dict[str, files.Content] = {}
    own = []
    for override in overrides:
        if manifest.is_file(override):
            name = f"base-{len(copies) + 1}.yaml"
            copies[name] = files.Content(files.read(Path(override)))
            override = str(folder.resolve() / name)
        own.append(override)
    return own, copies
