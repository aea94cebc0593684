"""`fedkd run data=own`: a folder of images as the data set of a simulation."""

import json

import numpy as np
from PIL import Image

from simulations.cli import main

WORDS = ["data=own", "data.labels=[dark, bright]", "data.shape=[1, 28, 28]", "partition=iid", "clients=2", "rounds=4"]
FAST = ["strategy=fedavg", "students=mlp", "train.lr=0.05", "engine=inline", "evaluate.probe=4", "--json", "--quiet"]


def images(folder, *, per_class, parts=("train", "test")):
    """Noise around a dark and a bright grey."""
    rng = np.random.Generator(np.random.Philox(0))
    for part in parts:
        for label, level in (("dark", 40), ("bright", 180)):
            place = folder / part / label
            place.mkdir(parents=True)
            for number in range(per_class):
                pixels = (level + rng.integers(0, 40, (28, 28))).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def test_a_folder_of_images_is_trained_on(tmp_path, capsys):
    place = images(tmp_path / "images", per_class=20)
    assert main.main(["run", *WORDS, f"data.root={place}", *FAST, "--runs", str(tmp_path / "runs")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["status"] == "done"
    assert summary["accuracy"]["last"] == 1.0


def test_the_run_that_was_written_can_be_run_again(tmp_path, capsys):
    place = images(tmp_path / "images", per_class=8)
    runs = ["--runs", str(tmp_path / "runs")]
    assert main.main(["run", *WORDS, "rounds=1", f"data.root={place}", *FAST, *runs, "--name", "first"]) == 0
    written = tmp_path / "runs/first/config.yaml"
    assert main.main(["run", str(written), *runs, "--name", "second", "--json", "--quiet"]) == 0
    ledgers = [(tmp_path / "runs" / name / "metrics.jsonl").read_bytes() for name in ("first", "second")]
    assert ledgers[0] == ledgers[1]


def test_a_wrong_size_ends_with_the_exit_code_of_data(tmp_path, capsys):
    place = images(tmp_path / "images", per_class=2)
    Image.new("L", (9, 28)).save(place / "train/dark/odd.png")
    assert main.main(["run", *WORDS, f"data.root={place}", *FAST, "--runs", str(tmp_path / "runs")]) == 3
    shown = capsys.readouterr().err
    assert "an image is 28x9 pixels, agreed are 28x28" in shown
    assert "odd.png" in shown
