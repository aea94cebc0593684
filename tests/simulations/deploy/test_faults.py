"""Devices that come, go, refuse, forget and lie: each is told of by name, and the round goes on with the others."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edges import EdgeGrid
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

import fedkd
from clients.supervised import Supervised
from fedkd.engine import ClientState
from fedkd.errors import EngineError, RunError
from simulations.deploy import device, engine, roster
from simulations.deploy.memory import Memory
from simulations.export import serving
from simulations.flower import codec
from simulations.flower.message_limits import Limits
from simulations.run import runs
from simulations.run.options import Options

WORDS = ("strategy=knfu", "proxy=held-out", "proxy.size=40", "rounds=2", "train.steps=2", "evaluate.probe=0")
AVERAGE = ("strategy=fedavg", "rounds=3", "train.steps=2", "evaluate.probe=0", "data.min_samples=1")


pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def grid(tmp_path: Path) -> EdgeGrid:
    return EdgeGrid(tmp_path, AVERAGE, 3).share()


def node(grid: EdgeGrid, client: int) -> int:
    return next(node for node, partition in grid.partitions.items() if partition == client)


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def at_round(number: int, do: Callable[[], None]) -> Callable[[Message, Message], Message]:
    """Do something once, when the first reply of a round's training is made."""
    done: list[int] = []

    def spoil(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and message.metadata.group_id == str(number) and not done:
            done.append(1)
            do()
        return reply

    return spoil


def test_a_device_that_goes_is_missed_by_name_and_one_that_comes_back_is_taken(tmp_path: Path, grid: EdgeGrid) -> None:
    its = node(grid, 1)

    def leave() -> None:
        del grid.partitions[its]

    def spoil(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and message.metadata.group_id == "3":
            grid.partitions[its] = 1  # joins while round 3 is played, too late for it
        return first(message, reply)

    first = at_round(1, leave)
    grid.spoil = spoil
    grid.play(tmp_path)
    clients = [row["clients"] for row in rows(tmp_path)]
    assert [row["ok"] for row in clients] == [2, 2, 2]
    assert "edge-2 is gone; its state is kept, it may come back" in grid.told
    assert grid.told.count("edge-2 has joined as client 1") == 2
    events = rows(tmp_path, "events.jsonl")
    assert any(event.get("what") == "edge-2 is not connected" and event["cause"] == "lost" for event in events)


def test_a_run_begins_with_the_configured_minimum(tmp_path: Path, grid: EdgeGrid) -> None:
    del grid.partitions[node(grid, 2)]
    grid.play(tmp_path, minimum=2)
    assert [row["clients"]["ok"] for row in rows(tmp_path)] == [2, 2, 2]


def test_a_run_with_too_few_devices_does_not_begin_and_says_who_is_there(tmp_path: Path, grid: EdgeGrid) -> None:
    del grid.partitions[node(grid, 2)]
    with pytest.raises(EngineError, match="2 of 3 devices have joined, 3 are needed"):
        grid.play(tmp_path, patience=0.2)


def test_below_the_quorum_a_run_ends_degraded_and_goes_on_later(tmp_path: Path) -> None:
    grid = EdgeGrid(tmp_path, (*AVERAGE, "quorum=2"), 3).share()
    lost = [node(grid, 1), node(grid, 2)]

    def leave() -> None:
        for each in lost:
            del grid.partitions[each]

    grid.spoil = at_round(1, leave)
    with pytest.raises(RunError, match="only 1 of 3 clients replied usefully, quorum is 2"):
        grid.play(tmp_path)
    grid.partitions |= {lost[0]: 1, lost[1]: 2}
    found = runs.resume(tmp_path / "run", runs=tmp_path, options=Options(quiet=True), target=grid.target())
    assert found["status"] == "done"
    assert [row["clients"]["ok"] for row in rows(tmp_path)] == [3, 3, 3]


def test_two_devices_with_one_number(tmp_path: Path, grid: EdgeGrid) -> None:
    grid.partitions[node(grid, 0) + 1] = 0
    grid.play(tmp_path)
    assert any("not accepted" in text and "two devices have one number" in text for text in grid.told)
    assert [row["clients"]["ok"] for row in rows(tmp_path)] == [3, 3, 3]


def test_a_device_that_claims_the_number_of_another_key(grid: EdgeGrid) -> None:
    told: list[str] = []
    found = roster.Roster(
        grid, 3, lambda text, urgency: told.append(text), keys={0: node(grid, 0), 1: 4711, 2: node(grid, 2)}
    )
    found.refresh()
    assert found.node(1) is None
    assert any("edge-2 is not accepted" in text and "another device's key" in text for text in told)
    assert found.node(0) == node(grid, 0)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"partition-id": 7}, "it reports that it is client 7"),
        ({"partition-id": "0"}, "it reports that it is client '0'"),
        ({}, "it reports that it is client None"),
        ({"partition-id": 1, "refused": "too little memory"}, "does not take part: too little memory"),
    ],
)
def test_what_a_node_says_of_itself_is_checked(grid: EdgeGrid, said: dict[str, Any], why: str) -> None:
    its = node(grid, 1)

    def spoil(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == its:
            return Message(RecordDict({"node": ConfigRecord({"name": "edge-2", **said})}), reply_to=message)
        return reply

    grid.spoil = spoil
    told: list[str] = []
    roster.Roster(grid, 3, lambda text, urgency: told.append(text)).refresh()
    assert any(why in text for text in told)


def test_a_node_whose_answer_flower_refuses_is_called_by_the_name_of_its_key(grid: EdgeGrid) -> None:
    its = node(grid, 1)

    def spoil(message: Message, reply: Message) -> Message:
        error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "it was answered twice")
        return Message(error, reply_to=message) if message.metadata.dst_node_id == its else reply

    grid.spoil = spoil
    told: list[str] = []
    names = {client: f"edge-{client + 1}" for client in range(3)}
    keys = {client: node(grid, client) for client in range(3)}
    roster.Roster(grid, 3, lambda text, urgency: told.append(text), names, keys).refresh()
    assert f"edge-2 (node {its}) is not accepted: it was answered twice (code {ErrorCode.MESSAGE_UNAVAILABLE})" in told


def test_a_device_cannot_take_anothers_name(grid: EdgeGrid) -> None:
    its = node(grid, 1)

    def spoil(message: Message, reply: Message) -> Message:
        said = ConfigRecord({"name": "edge-1", "partition-id": 1})
        return Message(RecordDict({"node": said}), reply_to=message) if message.metadata.dst_node_id == its else reply

    grid.spoil = spoil
    told: list[str] = []
    names = {client: f"edge-{client + 1}" for client in range(3)}
    keys = {client: node(grid, client) for client in range(3)}
    roster.Roster(grid, 3, lambda text, urgency: told.append(text), names, keys).refresh()
    assert "edge-2 has joined as client 1" in told


@pytest.mark.parametrize("said", [{f"fact-{k}": k for k in range(33)}, {"more": [1.0] * 10**6, "heat": float("nan")}])
def test_what_a_node_says_of_itself_is_bounded(grid: EdgeGrid, said: dict[str, Any]) -> None:
    def spoil(message: Message, reply: Message) -> Message:
        its = grid.partitions[message.metadata.dst_node_id]
        return Message(RecordDict({"node": ConfigRecord({"partition-id": its, **said})}), reply_to=message)

    grid.spoil = spoil
    found = roster.Roster(grid, 3, lambda text, urgency: None)
    found.refresh()
    assert set(json.dumps(found.facts())) <= set(json.dumps([{"client": 0, "name": f"node {k}"} for k in range(10)]))


def test_what_a_node_says_cannot_steer_a_terminal(grid: EdgeGrid) -> None:
    def spoil(message: Message, reply: Message) -> Message:
        said = {"name": "edge\x1b[2J", "refused": "no\rdevice edge-1 has joined"}
        return Message(RecordDict({"node": ConfigRecord(said)}), reply_to=message)

    grid.spoil = spoil
    told: list[str] = []
    roster.Roster(grid, 3, lambda text, urgency: told.append(text)).refresh()
    assert told == ["edge\\x1b[2J does not take part: no\\rdevice edge-1 has joined"] * 3


def test_a_node_that_died_with_the_question_is_asked_again(grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    found = roster.Roster(grid, 3, lambda text, urgency: None)
    grid.lose.add(node(grid, 1))
    found.refresh()
    grid.lose.clear()
    found.refresh()
    assert found.node(1) is None, "it may still be at work on its answer"
    monkeypatch.setattr(roster, "ASK_AGAIN", 0.0)
    found.refresh()
    assert found.node(1) == node(grid, 1)


def test_a_node_that_answers_twice_has_joined_once(grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    found = roster.Roster(grid, 3, lambda text, urgency: told.append(text))
    monkeypatch.setattr(roster, "ASK_AGAIN", 0.0)
    with monkeypatch.context() as slow:
        slow.setattr(grid, "pull_messages", lambda ids: [])
        found.refresh()
    found.refresh()
    found.refresh()
    assert sorted(told) == [f"edge-{k + 1} has joined as client {k}" for k in range(3)]


def test_a_node_whose_worker_fails_is_told_of(grid: EdgeGrid) -> None:
    def spoil(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == node(grid, 1):
            what = {"what": "KeyError: see the device's log", "cause": "raised"}
            return Message(RecordDict({"failure": ConfigRecord(what)}), reply_to=message)
        return reply

    grid.spoil = spoil
    told: list[str] = []
    roster.Roster(grid, 3, lambda text, urgency: told.append(text)).refresh()
    assert f"node {node(grid, 1)} is not accepted: KeyError: see the device's log" in told


# --- what a device refuses -----------------------------------------------------------------------------------------


def refusal(grid: EdgeGrid, client: int = 1) -> str:
    told: list[str] = []
    roster.Roster(grid, 3, lambda text, urgency: told.append(text)).refresh()
    (found,) = [text for text in told if text.startswith(f"edge-{client + 1} does not take part")]
    return found


def test_an_empty_folder_keeps_a_device_out_without_telling_what_is_in_it(grid: EdgeGrid) -> None:
    (grid.shards[1] / "data.npz").unlink()
    found = refusal(grid)
    assert str(grid.folder) not in found
    assert "npz" not in found


def test_another_version_is_refused(grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_installed", lambda: "0.0.1")
    assert f"fedkd 0.0.1 is installed here, the run uses {fedkd.__version__}" in refusal(grid)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"strategies": ("fedgen",)}, "does not allow strategy 'fedavg'"),
        ({"students": ("mlp",)}, "does not run student 'fedgen-cnn'"),
        ({"memory_mb": 0}, "this device lends 0"),
    ],
)
def test_a_device_has_limits(grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], why: str) -> None:
    plain = device.of

    def limited(node_config: dict[str, Any]) -> device.Device | None:
        found = plain(node_config)
        return replace(found, **limits) if found and found.client == 1 else found

    monkeypatch.setattr(device, "of", limited)
    assert why in refusal(grid)


def test_what_needs_everybodys_data_is_refused(tmp_path: Path) -> None:
    words = ("strategy=knfu", "students={mlp: 0.5, lenet5: 0.5}", "students.assign=size", "proxy=held-out")
    grid = EdgeGrid(tmp_path, (*words, "rounds=1"), 3).share()
    assert "exact sizes of all clients' data" in refusal(grid)


# --- what a device remembers ---------------------------------------------------------------------------------------


def test_a_lost_memory_is_told_of_and_the_run_goes_on(tmp_path: Path) -> None:
    grid = EdgeGrid(tmp_path, (*WORDS, "data.min_samples=1"), 3).share()
    grid.spoil = at_round(2, lambda: shutil.rmtree(grid.shards[1] / "state"))
    grid.play(tmp_path)
    assert any(text.startswith("edge-2 has lost its state") for text in grid.told)
    assert [row["clients"]["ok"] for row in rows(tmp_path)] == [3, 3]


def test_a_full_disk_on_a_device_is_its_failure_alone(
    tmp_path: Path, grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Memory.save

    def save(self: Memory, state: Any) -> str:
        if self.folder.name == "client-1":
            raise OSError(28, "No space left on device")
        return plain(self, state)

    monkeypatch.setattr(Memory, "save", save)
    grid.play(tmp_path)
    assert [row["clients"] for row in rows(tmp_path)] == [{"ok": 2, "failed": 1, "late": 0, "rejected": 0}] * 3
    failures = [event for event in rows(tmp_path, "events.jsonl") if event["event"] == "failure"]
    assert "cannot keep its state: No space left on device [edge-2]" in failures[0]["what"]


def test_what_went_wrong_inside_stays_inside(
    tmp_path: Path, grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Supervised.train

    def train(self: Supervised, site: Any, job: Any) -> Any:
        if job.client == 1:
            raise RuntimeError("cannot read /home/someone/photos/cat.png")
        return plain(self, site, job)

    monkeypatch.setattr(Supervised, "train", train)
    grid.play(tmp_path)
    written = "".join(
        path.read_text() for path in (tmp_path / "run").rglob("*") if path.suffix in {".jsonl", ".log", ".txt"}
    )
    assert "RuntimeError: see the device's log [edge-2]" in written
    assert "photos" not in written
    assert "photos/cat.png" in capsys.readouterr().out  # the device's own log


def test_a_device_acts_for_its_own_client_alone(grid: EdgeGrid) -> None:
    found = device.of({"partition-id": 1, "num-partitions": 3, "data": str(grid.shards[1]), "state": str(grid.folder)})
    assert found is not None
    import tiny

    job = replace(tiny.job(tiny.problem()), client=0)
    result = found.answer(job, grid.resolved.to_yaml(), "run")
    assert getattr(result, "what", "") == "this device only acts for client 1"


# --- what a device sends -------------------------------------------------------------------------------------------


def spoiled(grid: EdgeGrid, change: Callable[[RecordDict], None]) -> None:
    """Let client 1 spoil its replies to training."""

    def spoil(message: Message, reply: Message) -> Message:
        if (
            message.metadata.message_type == MessageType.TRAIN
            and grid.partitions.get(message.metadata.dst_node_id) == 1
        ):
            change(reply.content)
        return reply

    grid.spoil = spoil


def states(folder: Path) -> list[str]:
    return [row["cause"] for row in rows(folder, "clients.jsonl") if row["state"] in ("failed", "rejected")]


def test_a_reply_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "REPLY", Limits(size=10))
    with pytest.raises(RunError, match="only 0 of 3"):
        grid.play(tmp_path)
    failures = [event for event in rows(tmp_path, "events.jsonl") if event["event"] == "failure"]
    assert failures[0]["cause"] == "size"


def test_a_memory_that_leaves_the_device_is_refused(tmp_path: Path, grid: EdgeGrid) -> None:
    whole = codec.encode_state(ClientState(kept={"head.bias": torch.ones(10)}, last_round=1))
    spoiled(grid, lambda content: content.update(whole))
    grid.play(tmp_path)
    assert states(tmp_path) == ["kinds"] * 3


def test_a_version_that_no_device_makes_is_refused(tmp_path: Path, grid: EdgeGrid) -> None:
    endless = codec.encode_state(ClientState(memory={"version": "a" * 10_000}, last_round=1))
    spoiled(grid, lambda content: content.update(endless))
    grid.play(tmp_path)
    assert states(tmp_path) == ["range"] * 3


def test_a_device_reads_no_more_of_a_job_than_it_lends(
    tmp_path: Path, grid: EdgeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_JOB", Limits(size=10_000))
    with pytest.raises(
        RunError, match=r"the job cannot be read: the message has [\d,]+ bytes, at most 10,000 are read"
    ):
        grid.play(tmp_path)


def test_nonsense_is_rejected_with_its_cause(tmp_path: Path, grid: EdgeGrid) -> None:
    def nan(content: RecordDict) -> None:
        record = content["payload.weights"]
        assert isinstance(record, ArrayRecord)
        name = next(iter(record))
        record[name] = codec.encode_tensor(torch.full(tuple(record[name].shape), float("nan")))

    spoiled(grid, nan)
    grid.play(tmp_path)
    assert states(tmp_path) == ["non_finite"] * 3


def test_without_tls_each_round_says_so(tmp_path: Path, grid: EdgeGrid) -> None:
    grid.play(tmp_path, is_plaintext=True)
    assert grid.told.count(engine.PLAINTEXT) == 3


# --- the student that comes out ------------------------------------------------------------------------------------


def test_the_global_student_of_devices_is_exported_as_the_server_tried_it(tmp_path: Path, grid: EdgeGrid) -> None:
    grid.play(tmp_path)
    run = serving.load(tmp_path / "run", pytest.fail)
    served = serving.student(run.assembly, run.state, None)
    assert serving.accuracy(served, served.logits) == rows(tmp_path)[-1]["accuracy"]["global"]


def test_a_student_that_is_on_its_device_is_not_exported_as_what_it_began_with(tmp_path: Path) -> None:
    grid = EdgeGrid(tmp_path, (*WORDS, "data.min_samples=1"), 3).share()
    grid.play(tmp_path)
    (tmp_path / "public").mkdir()
    shutil.copy(grid.shards[0] / "public.npz", tmp_path / "public")
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "run")
    run = serving.load(tmp_path / "runs" / "run", pytest.fail)
    with pytest.raises(RunError, match="the student of client 1 is on its device"):
        serving.student(run.assembly, run.state, 1)
