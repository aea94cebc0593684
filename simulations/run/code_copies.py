"""The user's files in a run folder: a copy of each in `code/`, whose hash run.json records.

Of objects that a Python session gave, only the hash is kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedkd import extensions
from fedkd.errors import CheckpointError
from fedkd.extensions import UserFile

FOLDER = "code"
_KEYS = {"student": "students", "client": "strategy.client"}  # the argument for each kind of object


def write(place: Path, files: Sequence[UserFile]) -> None:
    """Copy the files into a new run folder."""
    if files:
        (place / FOLDER).mkdir(exist_ok=True)
    for file in files:
        (place / FOLDER / file.name).write_text(file.text, encoding="utf-8")


def facts(files: Sequence[UserFile]) -> dict[str, str]:
    """File name -> SHA-256, for run.json."""
    return {file.name: file.sha256 for file in files}


def execute(place: Path, info: Mapping[str, Any]) -> None:
    """Execute the copies of a run, so that its names are known. Raises CheckpointError if one is not the run's.

    Files of this process that are not the run's are refused: a run continues with the code that it began with.
    """
    recorded: Mapping[str, str] = info.get("user_code") or {}
    for file in extensions.files():
        if recorded.get(file.name) != file.sha256:
            mend = f"leave --py out: {place / FOLDER} is used" if recorded else "leave --py out"
            raise CheckpointError(f"{file.name} is not the code that this run began with", where=str(place), mend=mend)
    for name, sha256 in recorded.items():
        path = place / FOLDER / name
        if path.parent != place / FOLDER or not path.is_file():
            raise CheckpointError(f"{FOLDER}/{name} is missing", where=str(place), mend="put the file back")
        file = UserFile(name, path.read_text(encoding="utf-8"))
        if file.sha256 != sha256:
            what = f"{FOLDER}/{name} is not the code that this run began with"
            raise CheckpointError(what, where=str(place), mend="undo the changes, or start a new run with --py")
        extensions.executed(file.name, file.text)
    session: Mapping[str, str] = info.get("session") or {}
    for label, sha256 in session.items():
        _check_session(place, label, sha256, load_call(place, session))


def load_call(place: Path, session: Iterable[str]) -> str:
    """The Python call that loads a run, with the objects that came from a session: labels `student my-net`."""
    keys = [_KEYS.get(label.partition(" ")[0], label.partition(" ")[0]) for label in session]
    plain = "".join(f", {key}=..." for key in keys if "." not in key)
    dotted = "".join(f", **{{{key!r}: ...}}" for key in keys if "." in key)
    return f"fedkd.load({str(place)!r}{plain}{dotted})"


def _check_session(place: Path, label: str, sha256: str, call: str) -> None:
    kind, _, name = label.partition(" ")
    now = extensions.session_hash(cast(extensions.Kind, kind), name)
    if now == sha256:
        return
    why = "came from a Python session, and this one does not have it"
    why = "is not the one that this run began with" if now else why
    mend = f"give the same objects, in Python: {call}; what a run gets by --py stays in its folder"
    raise CheckpointError(f"its {kind} '{name}' {why}", where=str(place), mend=mend)
