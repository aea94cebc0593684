"""Every algorithm on samples of every kind: two rounds, or a sentence that says why not.

    python tests/enumerations/modalities.py                    every cell: five minutes of CPU time
    python tests/enumerations/modalities.py --only tokens      one kind of samples, or one strategy

The samples are drawn here, and each kind has its students. A cell is an algorithm of `algorithms.words`, or a part or
an augmentation on FedAvg. What must hold: no client fails, every number of the ledger is finite, and the accuracy is
a share; or the run is refused before its first round by the sentence in REFUSED.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import algorithms
import numpy as np

import fedkd
from fedkd import extensions, rounds
from fedkd.errors import ConfigError
from simulations import assemble
from simulations.engines.inline import Inline

Cell = tuple[str, str, tuple[str, ...]]  # kind of samples, student, words

STUDENTS = {"images": ("fedgen-cnn",), "rows": ("mlp",), "signals": ("cnn1d",), "tokens": ("textcnn", "gru")}
SMALL = ("rounds=2", "clients=4", "clients_per_round=3", "train.steps=2", "partition.alpha=5")
PARTS = ("teacher", "mixup", "layers", "graph", "ema", "anchor")
# What a cell with a word is refused with, for these kinds of samples; docs/own-code.md lists the sentences.
REFUSED = {
    "parts=[mixup]": ("part 'mixup' mixes samples, and token ids have no mean", {"tokens"}),
    "parts=[graph]": ("no feature map with more than one position", {"rows", "signals", "tokens"}),
    "strategy=fedfuse": ("fedfuse generates images, and these samples have shape", {"rows", "signals", "tokens"}),
}


def samples(kind: str) -> fedkd.Data:
    """120 samples of three classes, and 30 to test on."""
    rng = np.random.default_rng(0)
    y = np.arange(150) % 3
    made = {
        "images": (rng.integers(0, 200, (150, 1, 8, 8)) + 20 * y[:, None, None, None]).astype(np.uint8),
        "rows": rng.normal(size=(150, 6)) + y[:, None],
        "signals": rng.normal(size=(150, 2, 16)) + y[:, None, None],
        "tokens": rng.integers(0, 10, (150, 7)) + y[:, None],
    }
    x = made[kind]
    return fedkd.Data((x[:120], y[:120]), (x[120:], y[120:]))


def cells() -> Iterator[Cell]:
    on_fedavg = [("strategy=fedavg", f"parts=[{part}]") for part in PARTS]
    on_fedavg += [("strategy=fedavg", "proxy=noise", "proxy.size=20"), ("strategy=fedd2s", "strategy.head_arch=tail")]
    for kind, students in STUDENTS.items():
        for student in students:
            for words in (*algorithms.words(), *on_fedavg):
                yield kind, student, words


def one(cell: Cell) -> str:
    """What is wrong with a cell; empty: nothing."""
    kind, student, words = cell
    expected = ""
    if "proxy=held-out" not in words:  # with a public set fedfuse generates nothing
        expected = next((text for word, (text, kinds) in REFUSED.items() if word in words and kind in kinds), "")
    with extensions.kept():
        fedkd.register.data(f"of-{kind}")(lambda root: samples(kind))
        try:
            config = algorithms.configure(words, f"data=of-{kind}", f"students={student}", *SMALL)
            made = assemble.assemble(config)
        except ConfigError as error:
            return "" if expected and expected in str(error) else f"refused: {error}"
        state = rounds.begin(made.experiment)
        for _ in range(config.rounds):
            played = rounds.run_round(made.experiment, Inline(made.site), state)
            state = played.state
            if played.failures:
                return f"failed: {played.failures[0].what}"
    if expected:
        return f"runs, though it was to be refused: {expected}"
    numbers = [*algorithms.numbers(played.row["terms"]), *algorithms.numbers(played.row["server"])]
    is_sound = 0 <= played.row["accuracy"]["clients"]["mean"] <= 1 and all(map(math.isfinite, numbers))
    return "" if is_sound else f"odd numbers: {played.row}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="text that a cell holds")
    only, wrong, count = parser.parse_args().only, 0, 0
    for cell in cells():
        text = f"{cell[0]} {cell[1]} {' '.join(cell[2])}"
        if only not in text:
            continue
        count += 1
        try:
            found = one(cell)
        except Exception as error:  # noqa: BLE001  # what this looks for
            found = f"{type(error).__name__}: {error}"
        if found:
            wrong += 1
            print(f"{text}: {found}")
    print(f"{count - wrong} of {count} cells as expected")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
