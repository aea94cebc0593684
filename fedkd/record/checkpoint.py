"""Checkpoints: a run's state between two rounds, committed by one rename. No pickle: tensors and plain JSON.

checkpoints/round-0017/server.safetensors   tensors of the server's state, by name
                       clients.safetensors  tensors of all clients' states, packed: one flat tensor per dtype
                       state.json           everything else, and the lengths of the ledger at that moment
                       manifest.json        SHA-256 of each file and itself, versions, configuration; written last
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

import fedkd
from fedkd import rounds, state_values, strict_json
from fedkd.engine import ClientId, ClientState
from fedkd.errors import CheckpointError
from fedkd.experiment import Experiment, RunState
from fedkd.standing import Standing

SCHEMA = 1  # of the files; this version reads no other
FILES = ("server.safetensors", "clients.safetensors", "state.json")
MANIFEST = "manifest.json"
LONGEST_MANIFEST = 1 << 16  # bytes; ours have 600
_NAME = re.compile(r"round-(\d{4,})")
# Exceptions of reading values from intact bytes that make no sense.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError, SafetensorError)


@dataclass(frozen=True)
class Commit:
    """The content of a checkpoint: the state, and the length of each file of the ledger in bytes."""

    state: RunState
    lengths: Mapping[str, int]


class _Damaged(Exception):
    """A damaged checkpoint: its bytes differ from the committed ones, or no commit of ours can have them."""


def commit(folder: Path, state: RunState, lengths: Mapping[str, int], digest: str, score: float | None = None) -> Path:
    """Write the state below `folder` (`checkpoints/`), completely or not at all.

    `digest` is that of the configuration; `prune` keeps the highest `score`. Raises OSError if the disk is full.
    """
    head = {"schema": SCHEMA, "round": state.round, "config": digest, "score": score}
    head |= {"fedkd": fedkd.__version__, "torch": str(torch.__version__)}
    return _place(folder / folder_name(state.round), _contents(state, lengths), head)


def adopt(source: Path, folder: Path, digests: Sequence[str], digest: str) -> tuple[Mapping[str, int], str]:
    """Copy another run's commit below `folder`, for a run whose configuration has `digest`.

    Returns the lengths of the ledger then, and the SHA-256 of the copied commit. Raises CheckpointError if the commit
    is damaged or not under one of the other run's `digests`; OSError if the disk is full.
    """
    try:
        contents = _read(source, digests)
        head = _manifest(source)
        lengths = strict_json.mapping(contents["state.json"])["ledger"]
        _check_lengths(lengths)
    except (_Damaged, ValueError, LookupError) as error:
        raise CheckpointError(f"is damaged ({error})", where=str(source), mend="choose another --at") from error
    own = hashlib.sha256(_encode(head)).hexdigest()
    _place(folder / source.name, contents, {key: head[key] for key in head if key != "files"} | {"config": digest})
    return lengths, own


def _place(final: Path, contents: Mapping[str, bytes], head: Mapping[str, Any]) -> Path:
    """Write a commit under a temporary name, then rename it."""
    folder, temporary = final.parent, final.with_name(f".{final.name}")
    _clear(temporary)
    temporary.mkdir(parents=True)
    try:
        _write(temporary, contents, head)
        _clear(final)  # always a damaged commit that a resume has skipped
        temporary.rename(final)
        _sync(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def load(
    folder: Path,
    experiment: Experiment,
    digest: str,
    warn: Callable[[str], None],
    earlier: Mapping[str, int] = MappingProxyType({}),
) -> Commit | None:
    """The newest intact commit; None if there is no commit.

    `earlier`: the hash of each configuration that the run had before -> the last round whose commit under it counts.
    Skips damaged ones with a warning: some rounds run again, results stay identical. Raises CheckpointError if none is
    intact, or if it belongs to another configuration or version.
    """
    damaged: list[str] = []
    for path in reversed(committed(folder)):
        if number(path) > earlier.get(str(_unchecked_manifest(path).get("config")), number(path)):
            continue
        try:
            restored = _restore(_read(path, (digest, *earlier)), experiment, path)
        except _Damaged as damage:
            damaged.append(f"checkpoint round {number(path)} is damaged ({damage})")
            continue
        for text in damaged:
            warn(f"{text}; continuing from round {number(path)}, results stay identical")
        return restored
    if damaged:
        raise CheckpointError(
            f"none is whole: {'; '.join(damaged)}",
            where=str(folder),
            mend="start the run again from its config.yaml; metrics.jsonl and clients.jsonl can still be read",
        )
    return None


def committed(folder: Path) -> list[Path]:
    """The folders of all commits, oldest first."""
    return sorted((path for path in folder.glob("round-*") if _NAME.fullmatch(path.name)), key=number)


def forget(folder: Path, after: int) -> None:
    """Remove all commits of rounds later than `after`."""
    for path in committed(folder):
        if number(path) > after:
            _clear(path)


def prune(folder: Path, keep: int) -> None:
    """Remove all commits except for the `keep` newest and the best (earliest highest score); never a user's copy."""
    manifests = {path: _unchecked_manifest(path) for path in committed(folder)}
    paths = [path for path, head in manifests.items() if head.get("round", number(path)) == number(path)]
    scores = {path: score for path in paths if isinstance(score := manifests[path].get("score"), int | float)}
    best = max(scores, key=scores.__getitem__, default=None)
    for path in paths[:-keep]:
        if path != best:
            _clear(path)


def _contents(state: RunState, lengths: Mapping[str, int]) -> dict[str, bytes]:
    server_tensors, server = state_values.flatten(state.server)
    client_tensors, clients = state_values.flatten(dict(state.clients))
    packed, index = _pack(client_tensors)
    plain = {"round": state.round, "ledger": dict(lengths), "server": server, "clients": clients, "packing": index}
    if state.standing != Standing():
        plain["standing"] = state_values.flatten(state.standing)[1]
    return {
        "server.safetensors": safetensors.torch.save(_apart(server_tensors)),
        "clients.safetensors": safetensors.torch.save(packed),
        "state.json": _encode(plain),
    }


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, on the CPU and without shared memory, as the format requires."""
    stored_by_name, seen = {}, set()
    for name, tensor in tensors.items():
        stored = tensor.cpu().contiguous()
        address = stored.untyped_storage().data_ptr()
        stored_by_name[name] = stored.clone() if address in seen else stored
        seen.add(address)
    return stored_by_name


def _pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[str, str, list[int]]]]:
    """One flat tensor per dtype, and (name, dtype, shape) of its parts: 15 times faster than thousands of entries."""
    parts: dict[str, list[Tensor]] = {}
    index = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        parts.setdefault(dtype, []).append(tensor.cpu().reshape(-1))
        index.append((name, dtype, list(tensor.shape)))
    return {dtype: torch.cat(flat) for dtype, flat in parts.items()}, index


def _unpack(packed: Mapping[str, Tensor], index: list[tuple[str, str, list[int]]]) -> dict[str, Tensor]:
    tensors, position = {}, dict.fromkeys(packed, 0)
    for name, dtype, shape in index:
        start = position[dtype]
        position[dtype] = stop = start + torch.Size(shape).numel()
        # Cloned: a view sent to a worker carries the tensors of all clients with it.
        tensors[name] = packed[dtype][start:stop].clone().view(shape)
    return tensors


def _write(folder: Path, contents: Mapping[str, bytes], head: Mapping[str, Any]) -> None:
    for name, data in contents.items():
        _write_file(folder / name, data)
    manifest = {**head, "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}}
    own = hashlib.sha256(_encode(manifest)).hexdigest()
    _write_file(folder / MANIFEST, _encode({**manifest, "sha256": own}))
    _sync(folder)


def _read(folder: Path, digests: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the files, after two checks: that they are intact, and that this run wrote them."""
    manifest = _manifest(folder)
    _check_compatible(manifest, digests, folder)
    if manifest.get("round") != number(folder):
        raise _Damaged(f"{MANIFEST}: it belongs to round {manifest.get('round')}, so the folder was renamed or copied")
    hashes = manifest.get("files")
    if not isinstance(hashes, Mapping) or set(hashes) != set(FILES):
        raise _Damaged(f"{MANIFEST}: it does not name the files")
    return {name: _checked(folder / name, hashes[name]) for name in FILES}


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = strict_json.read(folder / MANIFEST, LONGEST_MANIFEST)
        own = manifest.pop("sha256")
        actual = hashlib.sha256(_encode(manifest)).hexdigest()
    except (OSError, ValueError, KeyError, RecursionError):
        raise _Damaged(f"{MANIFEST}: missing or unreadable") from None
    if actual != own:
        raise _Damaged(f"{MANIFEST}: hash differs")
    return manifest


def _checked(path: Path, digest: Any) -> bytes:
    """The bytes of a file, hashed before they are read into memory, because a damaged file may have any size."""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise _Damaged(f"{path.name}: hash differs")
            file.seek(0)
            return file.read()
    except OSError as error:
        raise _Damaged(f"{path.name}: {error.strerror}") from None


def _check_compatible(manifest: Mapping[str, Any], digests: Sequence[str], folder: Path) -> None:
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(
            f"written by fedkd {manifest.get('fedkd')} in format {manifest.get('schema')}, this is format {SCHEMA}",
            where=str(folder),
            mend=f"resume with fedkd {manifest.get('fedkd')}, or start the run again",
        )
    if manifest.get("config") not in digests:
        raise CheckpointError(
            f"belongs to another configuration ({str(manifest.get('config'))[:12]}, config.yaml has {digests[0][:12]})",
            where=str(folder),
            mend="undo the changes to config.yaml, or start a new run from it",
        )


def _restore(contents: Mapping[str, bytes], experiment: Experiment, folder: Path) -> Commit:
    """The values themselves. Their types come from our code: from the state before the first round."""
    template = rounds.begin(experiment).server
    try:
        plain = strict_json.mapping(contents["state.json"])
        named = safetensors.torch.load(contents["server.safetensors"])
        packed = safetensors.torch.load(contents["clients.safetensors"])
        tensors = _unpack(packed, plain["packing"])
        server = state_values.restore(template, plain["server"], named)
        clients = state_values.restore({}, plain["clients"], tensors, hint=Mapping[ClientId, ClientState])
        standing = state_values.restore(Standing(), plain["standing"], {}) if "standing" in plain else Standing()
        _check_shape(plain, number(folder), type(server) is type(template), clients)
    except state_values.Misfit as error:
        raise CheckpointError(
            f"does not fit this code: {error}", where=str(folder), mend="resume with the code that wrote it"
        ) from error
    except _UNREADABLE as error:  # the hashes are right, so another program wrote this
        raise _Damaged(f"it cannot be read: {type(error).__name__}") from None
    return Commit(RunState(plain["round"], server, clients, standing), plain["ledger"])


def _check_shape(plain: Mapping[str, Any], number: int, is_state: bool, clients: Any) -> None:
    """Raises ValueError for content that no commit holds."""
    lengths = plain["ledger"]
    if type(plain["round"]) is not int or plain["round"] != number or not is_state:
        raise ValueError("another round, or no state of this strategy")
    if not isinstance(clients, Mapping) or not all(map(_is_client, clients.items())):
        raise ValueError("no states of clients")
    _check_lengths(lengths)


def _check_lengths(lengths: Any) -> None:
    if not isinstance(lengths, Mapping) or not all(type(n) is int and n >= 0 for n in lengths.values()):
        raise ValueError("no lengths of the ledger")


def _is_client(item: tuple[Any, Any]) -> bool:
    client, state = item
    if type(client) is not int or not isinstance(state, ClientState) or not isinstance(state.kept, Mapping):
        return False
    counts = (state.epoch, state.position, state.last_round)
    return all(type(count) is int for count in counts) and all(isinstance(v, Tensor) for v in state.kept.values())


def folder_name(round: int) -> str:
    """The folder of a round's commit."""
    return f"round-{round:04d}"


def number(path: Path) -> int:
    """The round of a commit's folder."""
    return int(path.name.removeprefix("round-"))


def _unchecked_manifest(path: Path) -> Mapping[str, Any]:
    """A manifest, unchecked; empty if there is none."""
    try:
        return strict_json.read(path / MANIFEST, LONGEST_MANIFEST)
    except (OSError, ValueError):
        return {}


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=False, allow_nan=False).encode()


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make renames and new files in a folder survive a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder, and needs no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
