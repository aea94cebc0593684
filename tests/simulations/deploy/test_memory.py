"""What a device remembers: whole or not at all, for its owner alone, and back to the version the server knows."""

import os
import stat
from pathlib import Path

import pytest
import torch

from fedkd.engine import ClientState
from simulations.deploy import memory
from simulations.deploy.device import Device
from simulations.deploy.memory import KEPT, VERSION, Memory, stub

STATE = ClientState(
    kept={"head.bias": torch.arange(3.0)},
    memory={"table": torch.ones(2, 2), "rounds": [1, 2], "best": float("inf")},
    optimiser={"m": {"head.bias": torch.full((3,), 0.5)}, "step": 7},
    epoch=2,
    position=5,
    last_round=4,
)


def only_file(kept: Memory) -> Path:
    (found,) = kept.folder.iterdir()
    return found


@pytest.fixture
def kept(tmp_path: Path) -> Memory:
    return Memory(tmp_path, "run-1", 0)


def test_what_was_saved_comes_back(kept: Memory) -> None:
    back = kept.load(kept.save(STATE))
    assert back is not None
    assert torch.equal(back.kept["head.bias"], STATE.kept["head.bias"])
    assert torch.equal(back.memory["table"], STATE.memory["table"])
    assert back.memory["rounds"] == [1, 2]
    assert back.memory["best"] == float("inf")
    assert back.optimiser["step"] == 7
    assert (back.epoch, back.position, back.last_round) == (2, 5, 4)


def test_a_server_that_goes_back_finds_the_version_it_knows(kept: Memory) -> None:
    first = kept.save(STATE)
    second = kept.save(ClientState(last_round=5))
    assert kept.load(first).last_round == 4  # type: ignore[union-attr]
    assert kept.load(second).last_round == 5  # type: ignore[union-attr]


def test_only_the_newest_are_kept(kept: Memory) -> None:
    versions = [kept.save(ClientState(last_round=number)) for number in range(KEPT + 3)]
    assert len(list(kept.folder.iterdir())) == KEPT
    assert [kept.load(version) is None for version in versions] == [True] * 3 + [False] * KEPT


def test_runs_and_clients_are_apart(tmp_path: Path) -> None:
    version = Memory(tmp_path, "a", 0).save(STATE)
    assert Memory(tmp_path, "b", 0).load(version) is None
    assert Memory(tmp_path, "a", 1).load(version) is None


def test_a_flipped_bit_is_a_loss_not_a_state(kept: Memory) -> None:
    version = kept.save(STATE)
    path = only_file(kept)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert kept.load(version) is None


@pytest.mark.parametrize("content", [b"", b"no tensors at all"])
def test_what_is_no_state_is_a_loss(kept: Memory, content: bytes) -> None:
    version = kept.save(STATE)
    path = only_file(kept)
    named = path.name.rpartition("-")[0]
    path.rename(path.with_name(f"{named}-{memory._digest(content)}.safetensors"))
    only_file(kept).write_bytes(content)
    assert kept.load(version) is None


def test_files_are_for_their_owner_alone(kept: Memory) -> None:
    kept.save(STATE)
    assert stat.S_IMODE(only_file(kept).stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700


def test_a_full_disk_loses_nothing_that_was_there(kept: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    version = kept.save(STATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(ClientState(last_round=9))
    monkeypatch.undo()
    assert kept.load(version).last_round == 4  # type: ignore[union-attr]
    assert len(list(kept.folder.iterdir())) == 1  # no half file stays


@pytest.mark.parametrize("run", ["", "../up", "a/b", ".hidden", "x" * 200])
def test_a_name_that_is_no_name_of_a_run_is_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a run"):
        Memory(tmp_path, run, 0)


def test_a_stub_tells_how_far_and_which_version_and_nothing_else() -> None:
    told = stub(STATE, "ab12")
    assert told == ClientState(memory={VERSION: "ab12"}, epoch=2, position=5, last_round=4)


def test_a_device_goes_by_the_clock_of_the_server_which_is_that_of_before_the_round(
    kept: Memory, tmp_path: Path
) -> None:
    """In the second exchange of a round its own memory says that it has trained in this round already."""
    device = Device(client=0, clients=1, name="edge-1", data=tmp_path, state=tmp_path)
    known = ClientState(memory={VERSION: kept.save(STATE)}, last_round=3)
    back, lost = device._recall(kept, known)
    assert (back.last_round, back.epoch, back.memory["rounds"], lost) == (3, 2, [1, 2], False)
