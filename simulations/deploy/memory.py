"""A device's memory between rounds: a client's state, in files that outlive the device's processes.

The server has only the version of each client's state after its last admitted reply (`stub`). So a reply that was lost,
late or refused has no effect: the next job names the version before it.
"""

import hashlib
import json
import re
import secrets
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from fedkd import state_values, strict_json
from fedkd.engine import ClientState
from fedkd.wrappers import privacy
from simulations.deploy import files

KEPT = 8  # newest versions of a run: a server goes back one round, two after a damaged checkpoint
VERSION = "version"  # in a stub's memory
_FILE = re.compile(r"(\d{8})-([0-9a-f]{16})-([0-9a-f]{16})\.safetensors")  # order, version, SHA-256 of the content
_VERSION = re.compile(r"[0-9a-f]{16}")
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


class Memory:
    """The versions of one client's state in one run, below `folder`; only their owner can read them."""

    def __init__(self, folder: Path, run: str, client: int) -> None:
        if not _RUN.fullmatch(run):
            raise ValueError(f"'{run[:100]}' cannot be the name of a run")
        self.folder = folder / run / f"client-{client}"

    def load(self, version: str) -> ClientState | None:
        """The state of that version; None if it is gone or damaged."""
        for path in self._files():
            named = _FILE.fullmatch(path.name)
            if named and named[2] == version:
                return _read(path, named[3])
        return None

    def save(self, state: ClientState) -> str:
        """Save a state atomically; returns its version. Raises OSError if the disk is full."""
        tensors, plain = state_values.flatten(state)
        apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        data = safetensors.torch.save(apart, metadata={"plain": json.dumps(plain)})
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        older = self._files()
        order = int(older[-1].name[:8]) + 1 if older else 1
        version = secrets.token_hex(8)  # random: a counter would restart after a loss, and 7 would be ambiguous
        name = f"{order:08d}-{version}-{_digest(data)}.safetensors"
        files.write_atomically(self.folder / name, files.Content(data, files.SECRET))
        for path in older[: 1 - KEPT]:
            path.unlink(missing_ok=True)
        return version

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.safetensors") if _FILE.fullmatch(path.name))


def stub(state: ClientState, version: str) -> ClientState:
    """The server's view of a state: the client's progress, and the version."""
    memory: dict[str, Any] = {VERSION: version}
    if spent := state.memory.get(privacy.MEMORY):
        memory[privacy.MEMORY] = {"label_epsilon": spent["label_epsilon"]}  # for the ledger; the counts stay here
    return ClientState(memory=memory, epoch=state.epoch, position=state.position, last_round=state.last_round)


def version_of(state: ClientState) -> str | None:
    """The version in a stub, or None. Raises ValueError for text that `save` never gives."""
    version = state.memory.get(VERSION)
    if version is not None and not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise ValueError(f"a memory's version is 16 hexadecimal digits, not {str(version)[:40]!r}")
    return version


def _read(path: Path, digest: str) -> ClientState | None:
    try:
        data = path.read_bytes()
        if _digest(data) != digest:
            return None
        length = int.from_bytes(data[:8], "little")
        plain = strict_json.parse(strict_json.mapping(data[8 : 8 + length])["__metadata__"]["plain"])
        return state_values.restore(ClientState(), plain, safetensors.torch.load(data))
    except (
        OSError,
        SafetensorError,
        state_values.Misfit,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
    ):
        return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
