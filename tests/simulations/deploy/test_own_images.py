"""Devices with folders of images: what they have stays there, and a server without any test set plays on."""

import json
from pathlib import Path

import pytest
from edges import EdgeGrid
from pictures import pixels, write_folder

WORDS = (
    "data=own",
    "data.labels=[cat, dog]",
    "data.shape=[1, 8, 8]",
    "data.min_samples=4",
    "strategy=fedavg",
    "rounds=2",
    "train.steps=2",
)


pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def grid(tmp_path: Path) -> EdgeGrid:
    """Three devices, each with twelve images of two classes."""
    made = EdgeGrid(tmp_path, WORDS, 3)
    for client, folder in enumerate(made.shards):
        write_folder(folder, pixels(12, (8, 8), seed=client), ["cat", "dog"] * 6)
    return made


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_each_device_trains_and_tries_its_own(tmp_path: Path, grid: EdgeGrid) -> None:
    grid.play(tmp_path)
    (_, last) = rows(tmp_path)
    assert last["clients"] == {"ok": 3, "failed": 0, "late": 0, "rejected": 0}
    assert set(last["accuracy"]) == {"clients", "trained"}  # type: ignore[call-overload]  # the server has no test set


def test_a_server_with_images_of_its_own_tries_the_global_student_on_them(tmp_path: Path) -> None:
    server = write_folder(tmp_path / "server", pixels(10, (8, 8), seed=9), ["cat", "dog"] * 5)
    grid = EdgeGrid(tmp_path, (*WORDS, f"data.test={server}"), 3)
    for client, folder in enumerate(grid.shards):
        write_folder(folder, pixels(12, (8, 8), seed=client), ["cat", "dog"] * 6)
    grid.play(tmp_path)
    assert "global" in rows(tmp_path)[-1]["accuracy"]  # type: ignore[operator]


def test_a_class_that_nobody_agreed_on_keeps_the_device_out_and_is_not_named(tmp_path: Path, grid: EdgeGrid) -> None:
    write_folder(grid.shards[1], pixels(2, (8, 8)), ["secret-person", "secret-person"])
    grid.play(tmp_path, minimum=2)
    (told,) = [text for text in grid.told if "edge-2 does not take part" in text]
    written = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.jsonl"))
    assert "secret" not in told + written
    assert rows(tmp_path)[-1]["clients"]["ok"] == 2  # type: ignore[index]
